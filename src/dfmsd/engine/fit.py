"""The training loop of a run, and delivery of the student."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.loading import plain_loader
from dfmsd.data.multiscale import MultiScale
from dfmsd.data.splitcheck import open_test_split
from dfmsd.detectors import Detector, save_detector
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.average import WeightAverage
from dfmsd.engine.basis import BasisFit
from dfmsd.engine.callbacks import EpochEnd
from dfmsd.engine.checkpoint import BestCheckpoint, DurableIO, LastCheckpoint, saved_step
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.dashboard import Dashboard
from dfmsd.engine.delivery import choose_weights
from dfmsd.engine.finite import FiniteCheck
from dfmsd.engine.interrupt import Interrupted, StopOnInterrupt
from dfmsd.engine.loggers import build_loggers
from dfmsd.engine.module import LOG_EVERY, DistillationModule
from dfmsd.engine.restoring import Restoring
from dfmsd.engine.steplog import StepLog
from dfmsd.engine.stopping import Patience, TimeLimit
from dfmsd.errors import Stopped
from dfmsd.evaluation.evaluate import Metrics, evaluate, percent
from dfmsd.runfolder import RunFolder
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.console import console, quieted
from dfmsd.utils.device import default_device
from dfmsd.utils.distributed import explain_lost_process, is_first_process
from dfmsd.utils.durations import describe_duration
from dfmsd.utils.files import write_json

LIGHTNING_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
IRRELEVANT_WARNINGS = (
    ".*does not have many workers",
    ".*`isinstance.treespec",
    ".*Checkpoint directory",
    ".*could not find the monitored key",
    ".*have no `validation_step`",
    ".*callbacks used to create the checkpoint",
    ".*is smaller than the logging interval",
    r".*module\(s\) in eval mode at the start of training",  # frozen ones
)
"""Lightning's warnings about choices that are made here."""


@dataclass
class Result:
    """The outcome of a finished run.

    Attributes:
        metrics: COCO metrics of the delivered student on the validation images, 0..1.
        test_metrics: the same on the test split; None if the data have none.
        run: the run folder.
        student: the delivered detector, on the CPU and in eval mode.
    """

    metrics: Metrics
    run: Path
    student: Detector = field(repr=False)
    test_metrics: Metrics | None = None


def fit(
    config: DistillConfig,
    run: RunFolder,
    data: CocoDataModule,
    task: DistillationTask,
    checkpoint: Path | None = None,
    opening: Callable[[], None] | None = None,
) -> Result:
    """Train a task and deliver its student.

    Args:
        config: the run.
        run: its folder, which exists.
        data: the run's data.
        task: trained in place.
        checkpoint: where a resumed run continues.
        opening: opens the folder, once the checkpoint is restored if there is one.

    Raises:
        DfmsdError: the checkpoint does not fit this version.
        Stopped: a signal ended the training; the run is saved, and the student as of the last step delivered.
    """
    if checkpoint is None and opening is not None:
        opening()
    started, size = time.perf_counter(), config.data.image_size
    assert config.balance_schedule != AUTO  # which the config has replaced
    module = DistillationModule(
        task,
        config.optim,
        config.seed,
        skip_nonfinite=config.skip_nonfinite > 0,
        sync_statistics=config.sync_statistics,
        per_step=config.per_step,
        multi_scale=MultiScale(size, config.data.batch_sizes, config.seed) if config.data.multi_scale else None,
        balance_schedule=config.balance_schedule,
    )
    module.to(memory_format=torch.channels_last)
    if config.compile:
        plain = task.compile_parts()
        left_out = f"; not compiled: {', '.join(plain)}" if plain else ""
        _print(f"compile: the first steps take minutes{left_out}")
    average = WeightAverage(config.ema) if config.deliver in ("ema", "auto") else None
    evaluated = average if config.deliver == "ema" else None
    skipped = config.epochs_without_labels
    epoch_end = EpochEnd(run.path, data.val_dataloader(), config.eval_every, _print, evaluated, skipped)
    dashboard = Dashboard(console, str(run), epoch_end) if console.is_terminal and is_first_process() else None
    restoring, status = Restoring(checkpoint, opening), None
    with _without_irrelevant_warnings():
        callbacks = [restoring, *_build_callbacks(config, run, average, epoch_end, dashboard)]
        trainer = _build_trainer(config, run, callbacks, checkpoint)
        try:
            with dashboard or nullcontext(), explain_lost_process(), restoring.explained():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except Interrupted as interrupted:
            status = interrupted.status
    restoring.finish()
    if evaluated:
        evaluated.apply(task.student)
    if status is not None:
        _deliver_unfinished(run, task, epoch_end.metrics if epoch_end.is_current(trainer) else None)
        # torchrun would end the first process, which is still writing, if another one exited with a status first
        raise Stopped(status if is_first_process() else 0)
    metrics = epoch_end.metrics
    if config.deliver == "best":
        module.load_state_dict(torch.load(run.best_checkpoint, weights_only=True, map_location="cpu")["state_dict"])
        metrics = evaluate(task.student, data.val_dataloader(), device=default_device())
    assert metrics is not None
    if average and config.deliver == "auto":
        share = trainer.strategy.broadcast
        metrics = choose_weights(run, task.student, metrics, average, data.val_dataloader(), share, _print)
    student = task.student.eval()
    if is_first_process():
        save_detector(student, run.path)
        write_json(run.metrics_file, metrics)
        _print(f"AP {percent(metrics['AP'])}  {describe_duration(time.perf_counter() - started)}  {run}")
    test_metrics = None
    test = open_test_split(config.data) if is_first_process() else None
    if test is not None:  # last, since a damaged image ends it
        test_metrics = evaluate(student, plain_loader(config.data, test, "test"), device=default_device())
        write_json(run.test_metrics_file, test_metrics)
        _print(f"AP {percent(test_metrics['AP'])} on the test split")
    test_metrics = trainer.strategy.broadcast(test_metrics)  # no process reads what the first one has not written yet
    return Result(metrics, run.path, student.cpu(), test_metrics)


def _build_callbacks(
    config: DistillConfig,
    run: RunFolder,
    average: WeightAverage | None,
    epoch_end: EpochEnd,
    dashboard: Dashboard | None,
) -> list[Callback]:
    stop = StopOnInterrupt()
    last_stage = config.epochs - config.stages[-1].epochs
    return [
        StepLog(run.path),
        FiniteCheck(run.path, config.skip_nonfinite),
        *([average] if average else []),
        *([TimeLimit(config.max_hours, epoch_end, _print)] if config.max_hours else []),
        epoch_end,
        *([Patience(config.patience, last_stage, epoch_end, _print)] if config.patience else []),
        *([dashboard] if dashboard else []),
        BasisFit(run.path, _print),
        stop,
        BestCheckpoint(run.path),
        LastCheckpoint(run.path, stop, config.checkpoint_every),  # after the best one, whose state it saves
    ]


def _build_trainer(
    config: DistillConfig, run: RunFolder, callbacks: Sequence[Callback], checkpoint: Path | None
) -> pl.Trainer:
    devices, nodes = config.processes
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp_find_unused_parameters_true" if config.world_size > 1 else "auto",
        precision=LIGHTNING_PRECISION[config.chosen_precision],  # type: ignore[arg-type]
        gradient_clip_val=config.optim.clip or None,
        accumulate_grad_batches=config.per_step,
        callbacks=list(callbacks),
        plugins=DurableIO(),
        logger=build_loggers(config.loggers, run.path, saved_step(checkpoint) if checkpoint else None),
        log_every_n_steps=LOG_EVERY,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def _deliver_unfinished(run: RunFolder, task: DistillationTask, metrics: Metrics | None) -> None:
    student = task.student.cpu().eval()
    if is_first_process():
        save_detector(student, run.path)
        step = saved_step(run.last_checkpoint)
        quality = f"AP {percent(metrics['AP'])}" if metrics else "not evaluated"
        _print(
            f"interrupted: {run.weights_file} is the student so far, {quality}; resume it to continue from step {step}"
        )


def _print(line: str) -> None:
    console.print(line, highlight=False)


@contextmanager
def _without_irrelevant_warnings() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    with quieted(logger, logging.WARNING), warnings.catch_warnings():
        for message in IRRELEVANT_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield
