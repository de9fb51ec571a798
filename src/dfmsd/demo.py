"""``dfmsd demo``: two teachers, a baseline and a distilled student on the built-in digits, with a report."""

from __future__ import annotations

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
from dfmsd.runfolder import RunFolder
from dfmsd.utils.device import available_cores
from dfmsd.utils.durations import describe_duration
from dfmsd.utils.files import check_writable

DATA = DataConfig(root="digits", image_size=128, batch_size=8, flip=0)  # a mirrored digit is not a digit
STUDENT = DetectorConfig(arch="fcos", backbone="mobilenetv3_small_050", fpn_channels=64, head_convs=2)
TEACHER_A = DetectorConfig(
    arch="fcos", backbone="tf_efficientnet_lite0", fpn_channels=64, head_convs=2, pretrained=True
)
TEACHER_B = DetectorConfig(
    arch="retinanet", backbone="tf_efficientnet_lite2", fpn_channels=64, head_convs=2, pretrained=True
)
STAGES = (3, 6)


def demo_configs(out: Path) -> dict[str, TrainConfig | DistillConfig]:
    """Return the configs of the four runs, teachers first."""
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
        teacher_cache="ram",
    )
    return {
        "teacher_a": TrainConfig(out=folder["teacher_a"], data=DATA, model=TEACHER_A, epochs=5),
        "teacher_b": TrainConfig(out=folder["teacher_b"], data=DATA, model=TEACHER_B, epochs=6),
        "baseline": TrainConfig(out=folder["baseline"], data=DATA, optim=optim, model=STUDENT, epochs=sum(STAGES)),
        "distilled": distilled,
    }


def demo(out: Path) -> Path:
    """Train the four models, print a table and write the report; an earlier demo in ``out`` is replaced.

    Args:
        out: folder of the runs ``teacher_a``, ``teacher_b``, ``baseline`` and ``distilled``, and of ``report.html``.

    Returns:
        Path of the report.
    """
    start, console = time.perf_counter(), Console(markup=False)
    check_writable(out)
    configs = demo_configs(out)
    CocoDataModule(DATA)  # create the data set before two processes need it
    console.print("1/2 training both teachers at once")
    _side_by_side(configs["teacher_a"], configs["teacher_b"])
    console.print("2/2 training the student with and without distillation: same epochs, seed and data order")
    _side_by_side(configs["baseline"], configs["distilled"])
    console.print(_table({name: out / name for name in configs}))
    report = comparison_report(out / "report.html", {name: out / name for name in configs})
    console.print(f"{describe_duration(time.perf_counter() - start)}; report: {report}")
    return report


def _side_by_side(*configs: TrainConfig | DistillConfig) -> None:
    """Train in processes that share the cores: on a CPU, two at half the threads are faster than one by one."""
    workers = min(len(configs), available_cores())
    threads = available_cores() // workers
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        list(pool.map(_run, configs))


def _run(config: TrainConfig | DistillConfig) -> None:
    keep_freed_memory()  # once per process
    if isinstance(config, TrainConfig):
        train(config, overwrite=True)
    else:
        distill(config, overwrite=True)


def _table(runs: dict[str, Path]) -> Table:
    table = Table("run", "detector", "parameters", "epochs", "AP", "AP50", title="dfmsd demo")
    for name, path in runs.items():
        run = RunFolder(path)
        metrics, description, environment = (
            content or {} for content in (run.read_metrics(), run.read_description(), run.read_environment())
        )
        detector = "{arch} {backbone}".format(**description["detector"])
        parameters = f"{environment['parameters']['student']:,}"
        epochs = str(len(run.epochs_file.read_text(encoding="utf-8").splitlines()) - 1)
        table.add_row(name, detector, parameters, epochs, percent(metrics["AP"]), percent(metrics["AP50"]))
    return table
