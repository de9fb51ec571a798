"""Does stage-wise distillation help? Baseline, one stage and two stages on bccd, with paired seeds and equal epochs.

    python benchmarks/experiments/bccd.py --seeds 0 1 2
    python benchmarks/experiments/bccd.py --seeds 0 --methods b_then_b two_stage_5_37 single_stage_w4
    python benchmarks/experiments/bccd.py --seeds 0 1 2 3 4 --methods baseline single_stage full_generation online

Finished runs in ``runs/bccd`` are reused, so an interrupted experiment can be resumed. Writes
``benchmarks/results/bccd.json`` and keeps its rows of other seeds and methods.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import distill, train
from dfmsd.runfolder import RunFolder
from dfmsd.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "bccd"
RESULTS = ROOT / "benchmarks" / "results" / "bccd.json"
TEACHERS = ("teacher_a", "teacher_b")
METHODS = ("baseline", "single_stage", "two_stage")
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Number of seeds -> 97.5 % quantile of Student's t with one degree of freedom fewer."""
A, B = (str(Path("runs/bccd") / name) for name in TEACHERS)
FULL = {"name": "dfmsd", "generation": "full", "alpha": 1.0}
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "b_then_b": ("two_stage", {"stages": [StageConfig(14, B), StageConfig(28, B)], "loss": FULL}),
    "two_stage_5_37": ("two_stage", {"stages": [StageConfig(5, A), StageConfig(37, B)], "loss": FULL}),
    "sfa_only": ("single_stage", {"loss": {**FULL, "alpha": 0}}),
    "mask_only": ("single_stage", {"loss": {**FULL, "beta": 0}}),
    "single_stage_w4": ("single_stage", {"loss": {**FULL, "alpha": 4, "beta": 4}}),
    "full_generation": ("single_stage", {"loss": FULL, "teacher_cache": None}),
    "online": ("single_stage", {"teacher_cache": None}),
    "pkd": ("single_stage", {"loss": {"name": "pkd"}}),
    "pkd_w1": ("single_stage", {"loss": {"name": "pkd", "weight": 1}}),
    "cwd": ("single_stage", {"loss": {"name": "cwd"}}),
    "dmkd": ("single_stage", {"loss": {"name": "dmkd"}}),
    "mgd_b1": ("single_stage", {"loss": {"name": "mgd"}, "balance": 1.0}),
    "fgd_b1": ("single_stage", {"loss": {"name": "fgd"}, "balance": 1.0}),
    "fitnet_b1": ("single_stage", {"loss": {"name": "fitnet"}, "balance": 1.0}),
}
"""Name -> base config and changes."""


def run(method: str, seed: int) -> Path:
    """Start or resume a run, unless it has finished."""
    out = Path(f"runs/bccd/{method}_s{seed}")
    folder = RunFolder(out)
    if not folder.finished:
        resume = folder.last_checkpoint.exists()
        base, changes = CONTROLS.get(method, (method, {}))
        path, identity = CONFIGS / f"{base}.yaml", {"seed": seed, "out": str(out)}
        if method == "baseline":
            train(replace(read_config(TrainConfig, path), **identity), resume=resume)
        else:
            distill(replace(read_config(DistillConfig, path), **identity, **changes), resume=resume)
    return out


def row(method: str, seed: int, out: Path) -> dict[str, Any]:
    """Read one row of the table from a run folder."""
    folder = RunFolder(out)
    metrics = folder.read_metrics() or {}
    config = folder.read_config()
    epochs = config.get("epochs") or sum(stage["epochs"] for stage in config["stages"])
    steps = int(folder.log_file.read_text().splitlines()[-1].split(",")[0]) + 1
    scores = {name: metrics[name] for name in ("AP", "AP50", "AP75")}
    result = {"method": method, "seed": seed, "epochs": epochs, "steps": steps, **scores}
    if "loss" in config:
        result["generation"] = config["loss"].get("generation", "full")  # the only one before it became an option
    return result


def share_to_reach(method: str, seed: int) -> tuple[float, float] | None:
    """Return the share of steps until a run first reaches, and permanently exceeds, its baseline's final AP."""
    curves = [RunFolder(Path(f"runs/bccd/{name}_s{seed}")).epochs_file for name in (method, "baseline")]
    if not all(path.exists() for path in curves):
        return None
    aps, baseline = ([float(line["AP"]) for line in csv.DictReader(path.open())] for path in curves)
    below = [index for index, ap in enumerate(aps) if ap < baseline[-1]]
    if len(below) == len(aps) or aps[-1] < baseline[-1]:
        return None
    first = next(index for index, ap in enumerate(aps) if ap >= baseline[-1])
    return (first + 1) / len(aps), (max(below, default=-1) + 2) / len(aps)


def paired_difference(rows: dict[tuple[str, int], dict[str, Any]], first: str, second: str) -> str:
    """Format the differences of two methods per seed, with Student's 95 % interval of their mean."""
    seeds = [seed for method, seed in rows if method == first and (second, seed) in rows]
    differences = [100 * (rows[first, seed]["AP"] - rows[second, seed]["AP"]) for seed in seeds]
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    half = STUDENT_T[len(seeds)] * spread / math.sqrt(len(seeds))
    each = ", ".join(f"{difference:+.2f}" for difference in differences)
    interval = f"{mean - half:+.2f} to {mean + half:+.2f}"
    return f"{first} - {second}: {each}; {mean:+.2f} +- {spread:.2f}, 95 % interval {interval}"


def main() -> None:
    """Run missing experiments, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *CONTROLS], default=METHODS)
    parser.add_argument("--against", nargs=2, metavar="METHOD", help="print the paired difference of two methods")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = {(r["method"], r["seed"]): r for r in known}
    for seed in options.seeds:
        for method in options.methods:
            rows[method, seed] = row(method, seed, run(method, seed))
    teachers = {name: (RunFolder(Path(f"runs/bccd/{name}")).read_metrics() or {})["AP"] for name in TEACHERS}
    write_json(RESULTS, {"data": "bccd", "teachers": teachers, "rows": list(rows.values())})
    print("teachers: " + ", ".join(f"{name} {100 * ap:.1f}" for name, ap in teachers.items()))
    for method in dict.fromkeys(method for method, _ in rows):
        aps = {seed: 100 * r["AP"] for (name, seed), r in rows.items() if name == method}
        spread = f"+- {statistics.stdev(aps.values()):.1f}" if len(aps) > 1 else "one seed"
        gains = {
            seed: ap - 100 * rows["baseline", seed]["AP"] for seed, ap in aps.items() if ("baseline", seed) in rows
        }
        reached = [share for seed in gains if method != "baseline" and (share := share_to_reach(method, seed))]
        print(
            f"{method:16} AP {statistics.mean(aps.values()):.1f} {spread}  gains "
            + ", ".join(f"{gain:+.1f}" for gain in gains.values())
            + "".join(
                f"  baseline's AP first reached after {100 * a:.0f} % of the steps, permanently after {100 * b:.0f} %"
                for a, b in reached
            )
        )
    if options.against:
        print(paired_difference(rows, *options.against))


if __name__ == "__main__":
    main()
