"""Does stage-wise distillation help? Baseline, one stage and two stages on bccd, with paired seeds and equal epochs.

    python benchmarks/experiments/bccd.py --seeds 0 1 2
    python benchmarks/experiments/bccd.py --seeds 0 --methods b_then_b two_stage_5_37 single_stage_w4
    python benchmarks/experiments/bccd.py --seeds 0 1 2 3 4 --methods baseline single_stage full_generation online

Finished runs under ``runs/bccd`` are taken as they are, so that a broken-off experiment goes on. Writes
``benchmarks/results/bccd.json``; rows of other seeds and methods in it stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dfmsd.distill.stages import StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import distill, train
from dfmsd.files import write_json

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "bccd"
RESULTS = ROOT / "benchmarks" / "results" / "bccd.json"
TEACHERS = ("teacher_a", "teacher_b")
METHODS = ("baseline", "single_stage", "two_stage")
A, B = (str(Path("runs/bccd") / name) for name in TEACHERS)
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "b_then_b": ("two_stage", {"stages": [StageConfig(teacher=B, epochs=14), StageConfig(teacher=B, epochs=28)]}),
    "two_stage_5_37": ("two_stage", {"stages": [StageConfig(teacher=A, epochs=5), StageConfig(teacher=B, epochs=37)]}),
    "sfa_only": ("single_stage", {"loss": {"name": "dfmsd", "alpha": 0}}),
    "mask_only": ("single_stage", {"loss": {"name": "dfmsd", "beta": 0}}),
    "full_generation": ("single_stage", {"loss": {"name": "dfmsd", "generation": "full"}}),
    "online": ("single_stage", {"teacher_cache": None}),
    "cached_int8": ("single_stage", {"teacher_cache_dtype": "int8"}),
    "single_stage_w4": ("single_stage", {"loss": {"name": "dfmsd", "alpha": 4, "beta": 4}}),
}
"""Name -> the config it starts from and what it changes there."""


def run(method: str, seed: int) -> Path:
    """Make a run, go on with it, or find it finished."""
    out = Path(f"runs/bccd/{method}_s{seed}")
    if not (out / "metrics.json").exists():
        resume = (out / "last.ckpt").exists()
        base, changes = CONTROLS.get(method, (method, {}))
        path, place = CONFIGS / f"{base}.yaml", {"seed": seed, "out": str(out)}
        if method == "baseline":
            train(replace(read_config(TrainConfig, path), **place), resume=resume)
        else:
            distill(replace(read_config(DistillConfig, path), **place, **changes), resume=resume)
    return out


def row(method: str, seed: int, out: Path) -> dict[str, Any]:
    """Read one line of the table from a run folder."""
    metrics = json.loads((out / "metrics.json").read_text())
    config = yaml.safe_load((out / "config.yaml").read_text())
    epochs = config.get("epochs") or sum(stage["epochs"] for stage in config["stages"])
    steps = int((out / "log.csv").read_text().splitlines()[-1].split(",")[0]) + 1
    scores = {name: metrics[name] for name in ("AP", "AP50", "AP75")}
    made = {"method": method, "seed": seed, "epochs": epochs, "steps": steps, **scores}
    if "loss" in config:
        made["generation"] = config["loss"].get("generation", "full")  # what there was before it could be chosen
    return made


def share_to_reach(method: str, seed: int) -> tuple[float, float] | None:
    """Share of the steps after which a run first has its baseline's final AP, and after which it stays there."""
    curves = [Path(f"runs/bccd/{name}_s{seed}/epochs.csv") for name in (method, "baseline")]
    if not all(path.exists() for path in curves):
        return None
    own, baseline = ([float(line["AP"]) for line in csv.DictReader(path.open())] for path in curves)
    below = [index for index, ap in enumerate(own) if ap < baseline[-1]]
    if len(below) == len(own) or own[-1] < baseline[-1]:
        return None
    first = next(index for index, ap in enumerate(own) if ap >= baseline[-1])
    return (first + 1) / len(own), (max(below, default=-1) + 2) / len(own)


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *CONTROLS], default=METHODS)
    asked = parser.parse_args()
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = {(r["method"], r["seed"]): r for r in known}
    for seed in asked.seeds:
        for method in asked.methods:
            rows[method, seed] = row(method, seed, run(method, seed))
    teachers = {name: json.loads(Path(f"runs/bccd/{name}/metrics.json").read_text())["AP"] for name in TEACHERS}
    write_json(RESULTS, {"data": "bccd", "teachers": teachers, "rows": list(rows.values())})
    print("teachers: " + ", ".join(f"{name} {100 * ap:.1f}" for name, ap in teachers.items()))
    for method in dict.fromkeys(method for method, _ in rows):
        own = {seed: 100 * r["AP"] for (name, seed), r in rows.items() if name == method}
        spread = f"+- {statistics.stdev(own.values()):.1f}" if len(own) > 1 else "one seed"
        gains = {
            seed: ap - 100 * rows["baseline", seed]["AP"] for seed, ap in own.items() if ("baseline", seed) in rows
        }
        reached = [share for seed in gains if method != "baseline" and (share := share_to_reach(method, seed))]
        print(
            f"{method:16} AP {statistics.mean(own.values()):.1f} {spread}  gains "
            + ", ".join(f"{gain:+.1f}" for gain in gains.values())
            + "".join(
                f"  baseline's AP after {100 * a:.0f} % of the steps, for good after {100 * b:.0f} %"
                for a, b in reached
            )
        )


if __name__ == "__main__":
    main()
