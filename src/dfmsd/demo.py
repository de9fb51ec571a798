"""The whole job on the embedded data set: two teachers, baseline, distilled student, report."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import distill, train
from dfmsd.evaluation.evaluate import percent
from dfmsd.reporting import comparison_report
from dfmsd.utils.device import available_cores

DATA = DataConfig(root="digits", image_size=128, batch_size=8, flip=0)  # a mirrored digit is another sign
STUDENT = DetectorConfig(arch="fcos", backbone="mobilenetv3_small_050", fpn_channels=64, head_convs=2)
TEACHER_A = DetectorConfig(
    arch="fcos", backbone="tf_efficientnet_lite0", fpn_channels=64, head_convs=2, pretrained=True
)
TEACHER_B = DetectorConfig(
    arch="retinanet", backbone="tf_efficientnet_lite2", fpn_channels=64, head_convs=2, pretrained=True
)
STAGES = (3, 6)
LOSS = {"name": "dfmsd", "weight": 2.0, "alpha": 1.0}


def demo_configs(out: Path) -> dict[str, TrainConfig | DistillConfig]:
    """Describe the four runs of the demo, in the order in which they can be made."""
    folder = {name: str(out / name) for name in ("teacher_a", "teacher_b", "baseline", "distilled")}
    optim = OptimConfig(lr=2e-3)
    stages = [
        StageConfig(teacher=folder["teacher_a"], epochs=STAGES[0]),
        StageConfig(teacher=folder["teacher_b"], epochs=STAGES[1]),
    ]
    distilled = DistillConfig(
        out=folder["distilled"],
        data=DATA,
        optim=optim,
        student=STUDENT,
        stages=stages,
        loss=LOSS,
        teacher_cache="ram",
    )
    return {
        "teacher_a": TrainConfig(out=folder["teacher_a"], data=DATA, model=TEACHER_A, epochs=5),
        "teacher_b": TrainConfig(out=folder["teacher_b"], data=DATA, model=TEACHER_B, epochs=6),
        "baseline": TrainConfig(out=folder["baseline"], data=DATA, optim=optim, model=STUDENT, epochs=sum(STAGES)),
        "distilled": distilled,
    }


def demo(out: Path) -> Path:
    """Make the four runs, print their table and write the report; what an earlier demo left in ``out`` is replaced.

    Args:
        out: folder of the runs ``teacher_a``, ``teacher_b``, ``baseline``, ``distilled`` and of ``report.html``.

    Returns:
        The report.
    """
    start, console = time.perf_counter(), Console(markup=False)
    configs = demo_configs(out)
    CocoDataModule(DATA)  # makes the data set once, before two processes ask for it
    console.print("1/2 training the teachers, side by side")
    _side_by_side(configs["teacher_a"], configs["teacher_b"])
    console.print("2/2 the student: baseline and distilled, side by side, same epochs, seed and data order")
    _side_by_side(configs["baseline"], configs["distilled"])
    console.print(_table({name: out / name for name in configs}))
    report = comparison_report(out / "report.html", {name: out / name for name in configs})
    console.print(f"{time.perf_counter() - start:.0f} s; report: {report}")
    return report


def _side_by_side(*configs: TrainConfig | DistillConfig) -> None:
    """Run in processes that share the cores: on a CPU two with half the threads beat one after the other."""
    workers = min(len(configs), available_cores())
    threads = available_cores() // workers
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        list(pool.map(_run, configs))


def _run(config: TrainConfig | DistillConfig) -> None:
    keep_freed_memory()  # a process of its own
    if isinstance(config, TrainConfig):
        train(config, overwrite=True)
    else:
        distill(config, overwrite=True)


def _table(runs: dict[str, Path]) -> Table:
    table = Table("run", "detector", "parameters", "epochs", "AP", "AP50", title="dfmsd demo")
    for name, run in runs.items():
        metrics = json.loads((run / "metrics.json").read_text())
        model = json.loads((run / "student.json").read_text())["detector"]
        count = json.loads((run / "environment.json").read_text())["parameters"]["student"]
        epochs = len((run / "epochs.csv").read_text().splitlines()) - 1
        detector = f"{model['arch']} {model['backbone']}"
        table.add_row(name, detector, f"{count:,}", str(epochs), percent(metrics["AP"]), percent(metrics["AP50"]))
    return table
