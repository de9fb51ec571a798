"""Epochs per hour of whole runs: baseline, distillation, and distillation with a teacher cache.

The teacher has random weights, which cost as much as trained ones.

    python benchmarks/end_to_end.py --data ../shared/data/bccd
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from _measure import parse_arguments, print_rows, write_results

from dfmsd import DetectorConfig, StageConfig, build_detector
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import Detector
from dfmsd.engine.callbacks import EpochEnd
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import distill

STUDENT = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=64, head_convs=2)
TEACHER = DetectorConfig("faster_rcnn", "tf_efficientnet_lite2", fpn_channels=64)
EPOCHS = 3
RUNS: dict[str, dict[str, Any]] = {
    "baseline": {"no_distill": True},
    "online": {},
    "ram": {"teacher_cache": "ram"},
    "disk": {"teacher_cache": "disk"},
    "disk, filled": {"teacher_cache": "disk"},
}
"""Options of each run; `disk, filled` reads what `disk` has stored before."""
THREADS = 1


class Times(NamedTuple):
    """Times in seconds."""

    wall: float
    cpu: float
    """CPU time of the process."""


def time_epochs(config: DistillConfig, teacher: Detector, *, no_distill: bool = False, **options: Any) -> list[Times]:
    """Run once and return the time of each epoch, including its evaluation."""
    with tempfile.TemporaryDirectory() as out, recorded_times() as times, redirect_stderr(io.StringIO()):
        distill(
            replace(config, out=out, **options),
            no_distill=no_distill,
            allow_weak_teacher=True,
            check_images=1,
            teachers={"teacher": teacher},
        )
    return [Times(end.wall - start.wall, end.cpu - start.cpu) for start, end in pairwise(times)]


@contextmanager
def recorded_times() -> Iterator[list[Times]]:
    """Record when training starts, and when the evaluation after each epoch ends."""
    times: list[Times] = []

    def recording(method: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            method(*arguments)
            times.append(Times(perf_counter(), process_time()))

        return call

    names = ("on_train_start", "on_train_epoch_end")
    start, end = (patch.object(EpochEnd, name, recording(getattr(EpochEnd, name))) for name in names)
    with start, end:
        yield times


def measure(config: DistillConfig, teacher: Detector, rounds: int) -> list[dict[str, Any]]:
    """Run everything in turns and return a row for each of `RUNS`."""
    runs: dict[str, list[list[Times]]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, DFMSD_CACHE=cache):
            for name, options in RUNS.items():
                runs[name].append(time_epochs(config, teacher, **options))
    rows = [summarize(name, repeated) for name, repeated in runs.items()]
    for row in rows:
        row["ratio_to_baseline"] = row["later_epoch_s"] / rows[0]["later_epoch_s"]
        row["ratio_to_baseline_cpu"] = row["later_epoch_cpu_s"] / rows[0]["later_epoch_cpu_s"]
    return rows


def summarize(name: str, runs: list[list[Times]]) -> dict[str, Any]:
    """Return the medians over the rounds; `later` is the mean of all epochs but the first."""
    wall, cpu = (
        [statistics.median(getattr(times, clock) for times in epoch) for epoch in zip(*runs, strict=True)]
        for clock in Times._fields
    )
    later = statistics.mean(wall[1:])
    return {
        "run": name,
        "epochs_per_hour": 3600 / later,
        "first_epoch_s": wall[0],
        "later_epoch_s": later,
        "later_epoch_cpu_s": statistics.mean(cpu[1:]),
        "epoch_s": wall,
    }


def main() -> None:
    """Measure every run, print a table and write JSON."""
    options = parse_arguments(__doc__, "end_to_end", repeats=2, data="../shared/data/bccd")
    if not Path(options.data).is_dir():
        print(f"end_to_end: no folder {options.data}; pass a data set in the COCO layout with --data")
        return
    torch.set_num_threads(THREADS)
    data = DataConfig(root=options.data, image_size=192, batch_size=8)
    config = DistillConfig(
        data=data, student=STUDENT, stages=[StageConfig(teacher="teacher", epochs=EPOCHS)], out="runs"
    )
    torch.manual_seed(0)
    teacher = build_detector(TEACHER, CocoDataModule(config.data).class_names)
    rows = measure(config, teacher, options.repeats)
    shown = [{key: value for key, value in row.items() if key != "epoch_s"} for row in rows]
    print_rows(f"{EPOCHS} epochs of {Path(options.data).name}, medians of {options.repeats}, {THREADS} thread", shown)
    described = {**asdict(config), "teacher": asdict(TEACHER)}
    write_results(options.out, {"rows": rows, "repeats": options.repeats, "epochs": EPOCHS, "configuration": described})


if __name__ == "__main__":
    main()
