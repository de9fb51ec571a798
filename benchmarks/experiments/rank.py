"""Which predictor of `dfmsd check --rank` orders teachers as the finished students do?

    python benchmarks/experiments/rank.py --teachers ../shared/weights --root bccd=../shared/data/bccd

The finished students are those of ``pairs-digits.json``, ``compare-digits-unlike.json`` and
``compare-bccd-unlike.json`` in benchmarks/results, all with random weights and everything else by default; their
teachers are run folders in ``--teachers``, named as in `TEACHERS`. Pairs that ``rank.json`` holds are not measured
again. Correlations are Spearman's, between a predictor and the AP or the gain: over all pairs, within a data set, and
averaged over students with at least three teachers on a data set, which is what a user chooses among.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _runs import RESULTS
from rich.console import Console
from rich.table import Column, Table
from scipy.stats import spearmanr

from dfmsd.api.planning import rank_teachers
from dfmsd.data.config import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.detectors.config import DENSE_ARCHS
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.environment import describe_environment
from dfmsd.engine.optim import OptimConfig
from dfmsd.ranking.ranker import RankedTeacher, Ranking
from dfmsd.utils.files import write_json

OUT = RESULTS / "rank.json"
Row = dict[str, Any]
DATA = {
    "digits": (DataConfig("digits", image_size=128, batch_size=8, flip=0.0), OptimConfig(lr=2e-3)),
    "bccd": (DataConfig("bccd", image_size=192, batch_size=8), OptimConfig()),
}
"""Data set -> input and optimizer of the finished students; ``--root`` says where it is."""
TEACHERS = {
    ("digits", "fcos"): "digits_fcos_lite0",
    ("digits", "faster_rcnn"): "digits_faster_rcnn_lite2",
    ("digits", "retinanet"): "digits_retinanet_lite2",
    ("bccd", "fcos"): "bccd_fcos_lite0",
    ("bccd", "faster_rcnn"): "bccd_faster_rcnn_lite2",
}
"""Data set and architecture -> run folder."""
METHODS = {"none": None, "dfmsd@T1": "fcos", "dfmsd@T2": "faster_rcnn"}
"""Row of a comparison -> architecture of the teacher."""
PREDICTORS: dict[str, Callable[[RankedTeacher, Ranking], float | None]] = {
    "probe": lambda row, ranking: row.probe,
    "probe_gain": lambda row, ranking: None if None in (row.probe, ranking.alone) else row.probe - ranking.alone,
    "r2_start": lambda row, ranking: row.start.teacher,
    "r2_start_reverse": lambda row, ranking: row.start.student,
    "r2_later": lambda row, ranking: row.later and row.later.teacher,
    "r2_later_reverse": lambda row, ranking: row.later and row.later.student,
    "parameters": lambda row, ranking: row.parameters,
    "teacher_ap": lambda row, ranking: row.ap,
}
MIN_PAIRS = 3


def finished() -> list[Row]:
    """Return the pairs with the AP of their finished students; the teacher is None for the student without one."""
    pairs = []
    for student, teachers in read("pairs-digits").items():
        alone = next(iter(teachers.values()))["AP"]["none"]
        pairs.append(pair("digits", student, None, alone.values()))
        pairs += [pair("digits", student, arch, found["AP"]["dfmsd"].values()) for arch, found in teachers.items()]
    for data in ("digits", "bccd"):
        rows = read(f"compare-{data}-unlike")["rows"]
        for method, arch in METHODS.items():
            pairs.append(pair(data, "fcos", arch, (row["AP"] for row in rows if row["method"] == method)))
    return pairs


def read(name: str) -> Any:
    """Return the content of a JSON file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def pair(data: str, student: str, teacher: str | None, aps: Iterable[float]) -> Row:
    """Return a pair."""
    folder = None if teacher is None else TEACHERS[data, teacher]
    return {"data": data, "student": student, "teacher": folder, "AP": list(aps)}


def student_config(arch: str) -> DetectorConfig:
    """Return the student of an architecture, with random weights."""
    towers = {"head_convs": 2} if arch in DENSE_ARCHS else {}
    return DetectorConfig(arch, "mobilenetv3_small_050", fpn_channels=64, **towers)


def measure(pairs: Sequence[Row], options: argparse.Namespace) -> list[Row]:
    """Compute the predictors of the pairs of one student on one data set, which share the probe without a teacher."""
    first = pairs[0]
    data, optim = DATA[first["data"]]
    roots = dict(root.split("=", 1) for root in options.root)
    config = DistillConfig(
        out="unused",
        data=replace(data, root=roots.get(first["data"], data.root)),
        optim=optim,
        student=student_config(first["student"]),
        stages=[StageConfig(1)],
    )
    started = time.process_time()
    folders = {str(options.teachers / pair["teacher"]): pair for pair in pairs}
    ranking = rank_teachers(config, list(folders), steps=options.steps)
    rows = []
    for row in ranking.teachers:
        values = {name: predictor(row, ranking) for name, predictor in PREDICTORS.items()}
        rows.append({**folders[row.name], **values, "alone": ranking.alone, "steps": ranking.steps})
    seconds = (time.process_time() - started) / len(rows)
    return [{**row, "cpu_seconds": seconds} for row in rows]


def key_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what identifies a pair."""
    return row["data"], row["student"], row["teacher"]


def with_targets(rows: Iterable[Row], known: Sequence[Row]) -> list[Row]:
    """Add the mean AP of the finished students, and their gain where the student alone is known."""
    means = {(row["data"], row["student"], row["teacher"]): fmean(row["AP"]) for row in known}
    complete = []
    for row in rows:
        ap, alone = means.get(key_of(row)), means.get((row["data"], row["student"], None))
        complete.append({**row, "final": ap, "gain": None if None in (ap, alone) else ap - alone})
    return complete


def spearman(rows: Sequence[Row], predictor: str, target: str) -> float | None:
    """Return Spearman's rank correlation; None with too few pairs or without variance."""
    both = [(row[predictor], row[target]) for row in rows if None not in (row[predictor], row[target])]
    if len(both) < MIN_PAIRS or any(len(set(values)) < 2 for values in zip(*both, strict=True)):
        return None
    return float(spearmanr(*zip(*both, strict=True)).statistic)


def correlations(rows: Sequence[Row], predictor: str) -> dict[str, float | None]:
    """Correlate a predictor with AP and gain over all pairs, within each data set, and within each student."""
    sets: dict[str, list[Row]] = defaultdict(list)
    students: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        sets[row["data"]].append(row)
        students[row["data"], row["student"]].append(row)
    found: dict[str, float | None] = {}
    for target in ("final", "gain"):
        found[f"{target}, all"] = spearman(rows, predictor, target)
        found |= {f"{target}, {name}": spearman(part, predictor, target) for name, part in sets.items()}
    within = [spearman(part, predictor, "final") for part in students.values()]
    known = [value for value in within if value is not None]
    return {**found, "within a student": fmean(known) if known else None}


def choices(rows: Sequence[Row], predictor: str) -> dict[str, float | int]:
    """Count how often the predictor's first teacher is the best of a student's, and what the choice costs in AP."""
    students: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if None not in (row[predictor], row["final"]):
            students[row["data"], row["student"]].append(row)
    regrets = [
        max(row["final"] for row in part) - max(part, key=lambda row: row[predictor])["final"]
        for part in students.values()
        if len(part) > 1
    ]
    return {
        "students": len(regrets),
        "right": sum(regret == 0 for regret in regrets),
        "regret": fmean(regrets) if regrets else 0.0,
    }


def print_correlations(results: Mapping[str, Any], console: Console) -> None:
    """Print one line for each predictor."""
    columns = list(next(iter(results["correlations"].values())))
    title = f"Spearman's rank correlation, {len(results['pairs'])} pairs"
    table = Table(Column("predictor", no_wrap=True), *columns, "right choices", "regret, AP", title=title)
    for name, values in results["correlations"].items():
        cells = ["-" if values[column] is None else f"{values[column]:+.2f}" for column in columns]
        chosen = results["choices"][name]
        table.add_row(name, *cells, f"{chosen['right']} of {chosen['students']}", f"{100 * chosen['regret']:.1f}")
    console.print(table)


def main() -> None:
    """Measure missing pairs, correlate, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the teachers' run folders")
    parser.add_argument("--root", action="append", default=[], help="NAME=FOLDER of a data set; repeat")
    parser.add_argument("--steps", type=int, default=200, help="of a probe (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="default: benchmarks/results/rank.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = finished()
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    if before.get("steps", options.steps) != options.steps:
        parser.error(f"{options.out} holds pairs measured with {before['steps']} steps; pass another --out")
    rows = before.get("pairs", [])
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for pair in known:
        if pair["teacher"] is not None and key_of(pair) not in map(key_of, rows):
            groups[pair["data"], pair["student"]].append({name: pair[name] for name in ("student", "teacher", "data")})
    for group in groups.values():
        rows = [*rows, *measure(group, options)]
        write_json(options.out, {"steps": options.steps, "pairs": rows})
    rows = with_targets(rows, known)
    results = {
        "steps": options.steps,
        "pairs": rows,
        "correlations": {name: correlations(rows, name) for name in PREDICTORS},
        "choices": {name: choices(rows, name) for name in PREDICTORS},
        "environment": describe_environment(),
    }
    write_json(options.out, results)
    print_correlations(results, Console())


if __name__ == "__main__":
    main()
