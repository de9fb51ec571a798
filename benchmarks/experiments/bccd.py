"""Does stage-wise distillation help? Baseline, one stage and two stages on bccd, with paired seeds and equal epochs.

    python benchmarks/experiments/bccd.py --seeds 0 1 2

Finished runs under ``runs/bccd`` are taken as they are, so that a broken-off experiment goes on. Writes
``benchmarks/results/bccd.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.files import write_json
from dfmsd.engine.run import distill, train

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "bccd"
RESULTS = ROOT / "benchmarks" / "results" / "bccd.json"
TEACHERS = ("teacher_a", "teacher_b")
METHODS = ("baseline", "single_stage", "two_stage")


def run(method: str, seed: int) -> Path:
    """Make a run, go on with it, or find it finished."""
    out = Path(f"runs/bccd/{method}_s{seed}")
    if not (out / "metrics.json").exists():
        resume = (out / "last.ckpt").exists()
        kind = TrainConfig if method == "baseline" else DistillConfig
        config = read_config(kind, CONFIGS / f"{method}.yaml")
        config.seed, config.out = seed, str(out)
        train(config, resume=resume) if isinstance(config, TrainConfig) else distill(config, resume=resume)
    return out


def row(method: str, seed: int, out: Path) -> dict[str, Any]:
    """Read one line of the table from a run folder."""
    metrics = json.loads((out / "metrics.json").read_text())
    config = yaml.safe_load((out / "config.yaml").read_text())
    epochs = config.get("epochs") or sum(stage["epochs"] for stage in config["stages"])
    steps = int((out / "log.csv").read_text().splitlines()[-1].split(",")[0]) + 1
    scores = {name: metrics[name] for name in ("AP", "AP50", "AP75")}
    return {"method": method, "seed": seed, "epochs": epochs, "steps": steps, **scores}


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    rows = [row(method, seed, run(method, seed)) for seed in seeds for method in METHODS]
    teachers = {name: json.loads(Path(f"runs/bccd/{name}/metrics.json").read_text())["AP"] for name in TEACHERS}
    score = {(r["method"], r["seed"]): 100 * r["AP"] for r in rows}
    print("teachers: " + ", ".join(f"{name} {100 * ap:.1f}" for name, ap in teachers.items()))
    for method in METHODS:
        own = [score[method, seed] for seed in seeds]
        gains = [score[method, seed] - score["baseline", seed] for seed in seeds]
        spread = statistics.stdev(own) if len(own) > 1 else float("nan")
        print(f"{method:13} AP {statistics.mean(own):.1f} +- {spread:.1f}  gain {statistics.mean(gains):+.1f}  {own}")
    write_json(RESULTS, {"data": "bccd", "teachers": teachers, "rows": rows})


if __name__ == "__main__":
    main()
