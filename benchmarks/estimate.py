"""Accuracy of `dfmsd estimate`: predicted and measured milliseconds of a training step.

Each row is one epoch of a run: the prediction comes from `dfmsd.estimation.estimator`, the measurement from the real
loop (Lightning, data, logs, optimizer) with the same config. The teachers have random weights, the data are rendered
digits.

    python benchmarks/estimate.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from _measure import RESULTS, Median, print_rows, write_results

from dfmsd import DetectorConfig, StageConfig
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.digits import make_digits
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.saved_config import to_yaml
from dfmsd.engine.steplog import StepLog
from dfmsd.engine.teachercache import open_caches, plan_caches
from dfmsd.estimation.estimator import estimate, untrained_task

STUDENT = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=64, head_convs=2)
TEACHERS = {
    "digits, FCOS lite0": (128, DetectorConfig("fcos", "tf_efficientnet_lite0", fpn_channels=64, head_convs=2)),
    "192 px, Faster R-CNN lite2": (192, DetectorConfig("faster_rcnn", "tf_efficientnet_lite2", fpn_channels=64)),
}
CACHES = (None, "ram", "disk")
BATCH, EPOCHS, THREADS = 8, 3, 1


def configs(folder: Path) -> dict[str, DistillConfig]:
    """Return the configs of each pair of student and teacher with every kind of cache, initially empty."""
    root = str(make_digits(folder / "digits", train=20 * BATCH, val=2 * BATCH))
    runs = {}
    for number, (name, (size, teacher)) in enumerate(TEACHERS.items()):
        data = DataConfig(root, image_size=size, batch_size=BATCH, flip=0)
        recipe = folder / f"teacher_{number}.yaml"
        recipe.write_text(to_yaml(TrainConfig(out=str(folder / "unused"), data=data, model=teacher)), encoding="utf-8")
        stages = [StageConfig(epochs=EPOCHS, teacher=str(recipe))]
        config = DistillConfig(out=str(folder / "unused"), data=data, student=STUDENT, stages=stages)
        runs |= {f"{name}, cache {cache}": replace(config, teacher_cache=cache) for cache in CACHES}
    return runs


class StepTimes(pl.Callback):
    """Record the times from the end of one step to the end of the next, by epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[tuple[float, float]]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start a list."""
        self.epochs.append([])

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Record the time."""
        self.epochs[-1].append((time.perf_counter(), time.process_time()))

    def median_ms(self, epoch: int) -> Median:
        """Return the median step of an epoch."""
        steps = pairwise(self.epochs[epoch])
        differences = [[after - before for before, after in zip(*pair, strict=True)] for pair in steps]
        return Median(*(1e3 * statistics.median(column) for column in zip(*differences, strict=True)))


def measure(config: DistillConfig, folder: Path) -> StepTimes:
    """Train with the loop of a run, without evaluation and checkpoints."""
    data = CocoDataModule(config.data, digest=config.teacher_cache is not None)
    task = untrained_task(config, data.class_names)
    plan = plan_caches(task, config, len(data.train))
    if plan is not None:
        open_caches(plan)
    module = DistillationModule(task, config.optim).to(memory_format=torch.channels_last)
    times = StepTimes()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        gradient_clip_val=config.optim.clip,
        callbacks=[StepLog(folder), times],
        logger=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data)
    return times


def rows(name: str, config: DistillConfig, seconds: float) -> list[dict[str, Any]]:
    """Predict and measure wall-clock and CPU time; returns a row for the first and for the last epoch."""
    wall, cpu = (estimate(config, seconds=seconds, clock=clock) for clock in (time.perf_counter, time.process_time))
    with tempfile.TemporaryDirectory() as folder:
        times = measure(config, Path(folder))
    results = []
    for epoch, key, index in (("first", "first_step_ms", 0), ("last", "step_ms", -1)):
        predicted = Median(*(getattr(one.prediction.stages[0], key) for one in (wall, cpu)))
        measured = times.median_ms(index)
        results.append(
            {
                "run": name,
                "epoch": epoch,
                "predicted_ms": predicted.wall,
                "measured_ms": measured.wall,
                "ratio": predicted.wall / measured.wall,
                "predicted_ms_cpu": predicted.cpu,
                "measured_ms_cpu": measured.cpu,
                "ratio_cpu": predicted.cpu / measured.cpu,
                "parts_ms": wall.parts_ms,
                "parts_ms_cpu": cpu.parts_ms,
            }
        )
    return results


def main() -> None:
    """Predict and measure every row, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="per estimate (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "estimate.json", help="JSON file (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DFMSD_CACHE"] = f"{folder}/cache"  # leave the caches of real runs alone
        runs = configs(Path(folder))
        found = [row for name, config in runs.items() for row in rows(name, config, options.seconds)]
    shown = [{key: value for key, value in row.items() if not isinstance(value, dict)} for row in found]
    print_rows(f"a step, batch {BATCH}, {THREADS} thread", shown)
    extremes = {
        f"{end.__name__}_{key}": end(row[key] for row in found) for key in ("ratio", "ratio_cpu") for end in (min, max)
    }
    write_results(options.out, {**extremes, "seconds": options.seconds, "rows": found})


if __name__ == "__main__":
    main()
