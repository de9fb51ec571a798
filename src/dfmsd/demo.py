"""``dfmsd demo``: two teachers, a baseline and a distilled student on the built-in digits, with a report."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import distill, train
from dfmsd.evaluation.evaluate import percent
from dfmsd.reporting import comparison_report
from dfmsd.runfolder import RunFolder
from dfmsd.starting.starter import start
from dfmsd.utils.console import results_console
from dfmsd.utils.device import available_cores
from dfmsd.utils.durations import describe_duration
from dfmsd.utils.files import check_writable, make_folder

STUDENT = DetectorConfig(arch="fcos", backbone="mobilenetv3_small_050")
TEACHER_BACKBONE = "tf_efficientnet_lite0"
TEACHER_EPOCHS = 4
STAGES = (2, 4)
"""Epochs of the student with each teacher."""


def demo_configs(out: Path) -> dict[str, TrainConfig | DistillConfig]:
    """Return the configs of the four runs, teachers first.

    They are what ``dfmsd init digits --student fcos/mobilenetv3_small_050 --epochs 6`` chooses, with three changes: a
    smaller teacher, fewer epochs for it, and a GFL as the teacher of a stage before that of the chosen one.

    Args:
        out: existing folder, for the runs and for the files that `start` writes.
    """
    files = start("digits", out / "distilled.yaml", student=STUDENT, epochs=sum(STAGES))
    chosen, teacher = read_config(DistillConfig, files[0]), read_config(TrainConfig, files[1])
    model = replace(teacher.model, backbone=TEACHER_BACKBONE)
    teacher = replace(teacher, epochs=TEACHER_EPOCHS, eval_every=TEACHER_EPOCHS, model=model)
    teachers = {
        "teacher_a": replace(teacher, out=str(out / "teacher_a"), model=replace(model, arch="gfl")),
        "teacher_b": replace(teacher, out=str(out / "teacher_b")),
    }
    distilled = replace(
        chosen,
        out=str(out / "distilled"),
        stages=[StageConfig(epochs, own.out) for epochs, own in zip(STAGES, teachers.values(), strict=True)],
        eval_every=2,
    )
    return {
        **teachers,
        "baseline": replace(distilled.without_teachers(), out=str(out / "baseline")),
        "distilled": distilled,
    }


def demo(out: Path) -> Path:
    """Train the four models, print a table and write the report; an earlier demo in ``out`` is replaced.

    Args:
        out: folder of the runs ``teacher_a``, ``teacher_b``, ``baseline`` and ``distilled``, of ``report.html``, and of
            the configs that ``dfmsd init`` would write.

    Returns:
        Path of the report.
    """
    began, console = time.perf_counter(), results_console()
    check_writable(out)
    make_folder(out)
    console.print("1/3 choosing the settings, as dfmsd init does, and creating the digits")
    configs = demo_configs(out)
    console.print("2/3 training both teachers at once")
    _side_by_side(configs["teacher_a"], configs["teacher_b"])
    console.print("3/3 training the student with and without distillation: same epochs, seed and data order")
    _side_by_side(configs["baseline"], configs["distilled"])
    console.print(_table(configs))
    report = comparison_report(out / "report.html", {name: out / name for name in configs})
    console.print(f"{describe_duration(time.perf_counter() - began)}; report: {report}")
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


def _table(configs: dict[str, TrainConfig | DistillConfig]) -> Table:
    table = Table("run", "detector", "parameters", "epochs", "AP", "AP50", title="dfmsd demo")
    for name, config in configs.items():
        run = RunFolder(Path(config.out))
        metrics, description, environment = (
            content or {} for content in (run.read_metrics(), run.read_description(), run.read_environment())
        )
        detector = "{arch} {backbone}".format(**description["detector"])
        parameters = f"{environment['parameters']['student']:,}"
        table.add_row(name, detector, parameters, str(config.epochs), percent(metrics["AP"]), percent(metrics["AP50"]))
    return table
