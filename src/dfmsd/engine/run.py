"""A run from its config to its folder."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import Detector, build_detector, check_frozen, load_detector, save_detector
from dfmsd.distillation.checks import ownership
from dfmsd.distillation.inherit import inherit
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.engine.callbacks import BalanceReport, EpochEnd, Interrupted, StepLog, StopOnInterrupt
from dfmsd.engine.checkpoint import (
    LAST,
    PREVIOUS,
    DurableIO,
    LastCheckpoint,
    find_checkpoint,
    full_disk_told,
    saved_step,
    tidy,
)
from dfmsd.engine.config import DistillConfig, RunConfig, TrainConfig, same_run, write_config
from dfmsd.engine.configfile import read_config
from dfmsd.engine.dashboard import Dashboard
from dfmsd.engine.environment import describe_environment
from dfmsd.engine.finite import FiniteCheck
from dfmsd.engine.loggers import build_loggers, check_loggers
from dfmsd.engine.module import LOG_EVERY, DistillationModule
from dfmsd.engine.preflight import Preflight, preflight, print_preflight
from dfmsd.engine.teachercache import found_and_computed, open_caches, plan_caches
from dfmsd.errors import DfmsdError, Stopped
from dfmsd.evaluation.evaluate import evaluate, percent
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import console
from dfmsd.utils.device import default_device
from dfmsd.utils.distributed import check_process_counts, explain_lost_process, is_first_process
from dfmsd.utils.files import check_path, write_json

LIGHTNING_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
ADVICE = (
    ".*does not have many workers",
    ".*`isinstance.treespec",
    ".*Checkpoint directory",
    ".*could not find the monitored key",
    ".*have no `validation_step`",
    ".*callbacks used to create the checkpoint",
)
"""How Lightning's warnings begin that concern what is decided here."""


@dataclass
class Result:
    """What a run hands back.

    Attributes:
        metrics: COCO metrics of the delivered student on the validation images, 0..1; empty when not finished.
        run: the run folder.
        student: the delivered detector, in eval mode.
        finished: False when the run was interrupted.
        status: exit status for the process: 0, or which signal interrupted the run.
    """

    metrics: Mapping[str, Any]
    run: Path
    student: Detector
    finished: bool = True
    status: int = 0


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> Result:
    """Train a detector on labels alone, through the loop of `distill`.

    Args:
        config: the run.
        resume: go on with an unfinished run in ``config.out``.
        overwrite: delete what is in ``config.out`` first.

    Raises:
        DfmsdError: bad input, or a folder that already holds a run.
    """
    return distill(config.as_distillation(), resume=resume, overwrite=overwrite, written=config)


def distill(
    config: DistillConfig,
    *,
    no_distill: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    student: Detector | None = None,
    teachers: Mapping[str, Detector] | None = None,
    written: RunConfig | None = None,
) -> Result:
    """Distil teachers into a student, stage by stage.

    Args:
        config: the run.
        no_distill: the baseline: the same loop without teachers.
        resume: go on with an unfinished run in ``config.out``.
        overwrite: delete what is in ``config.out`` first.
        allow_weak_teacher: do not refuse a teacher that measures badly.
        check_images: validation images of the pre-flight; None takes all.
        student: a detector to train instead of building ``config.student``.
        teachers: detectors that the stages refer to by these names; the other references are loaded.
        written: what ``config.yaml`` shall hold, if not ``config``.

    Returns:
        Metrics, run folder and student. After Ctrl-C, SIGTERM or SIGUSR1 ``finished`` is False, and the student as it
        was then.

    Raises:
        DfmsdError: bad input, or a folder that already holds a run.
        Stopped: such a signal ended the training of a teacher; the student has not begun.
    """
    keep_freed_memory()
    check_loggers(config.loggers)
    if no_distill:
        config = config.without_teachers()
    run = Path(config.out)
    first = is_first_process()  # the others join later, when the folder is no longer empty
    if first:
        _check_folder(run, written or config, resume=resume, overwrite=overwrite)
    if student is None:
        check_frozen(config.student)
    data = read_data(config)
    task = build_task(config, data.class_names, student=student, teachers=teachers)
    checkpoint = find_checkpoint(run) if resume else None
    cache = plan_caches(task, config, len(data.train))
    if first and any(task.teachers) and checkpoint is None:
        found = preflight(
            task, data, images=check_images, allow_weak_teacher=allow_weak_teacher, device=default_device(), cache=cache
        )
        print_preflight(found, console)
    if cache is not None:
        open_caches(cache)
    if first:
        _open_folder(run, written or config, task, checkpoint, overwrite=overwrite)
    with full_disk_told(run):
        result = _fit(config, run, data, task, checkpoint)
    if first and cache is not None:
        _say(found_and_computed(cache))
    return result


def check(config: DistillConfig, *, allow_weak_teacher: bool = False, check_images: int | None = None) -> Preflight:
    """Run the pre-flight of `distill` and nothing else; nothing is written but teachers that are made on first use."""
    check_frozen(config.student)
    data = read_data(config)
    task = build_task(config, data.class_names)
    cache = plan_caches(task, config, len(data.train))
    found = preflight(
        task, data, images=check_images, allow_weak_teacher=allow_weak_teacher, device=default_device(), cache=cache
    )
    if is_first_process():  # a teacher's training may have started others
        print_preflight(found, console)
    return found


def read_data(config: DistillConfig) -> CocoDataModule:
    """Read the data of a run, for its number of processes and with what its caches need."""
    digest = config.teacher_cache is not None
    return CocoDataModule(config.data, seed=config.seed, digest=digest, processes=config.processes[0])


def build_task(
    config: DistillConfig,
    class_names: Sequence[str],
    *,
    student: Detector | None = None,
    teachers: Mapping[str, Detector] | None = None,
) -> DistillationTask:
    """Build student, teachers and losses of a run; weights follow from the seed alone.

    Raises:
        DfmsdError: student, teachers and data do not fit each other.
    """
    pl.seed_everything(config.seed, verbose=False)
    student = student or build_detector(config.student, class_names)
    if student.class_names != tuple(class_names):
        raise DfmsdError(
            f"student: its classes {', '.join(student.class_names)} are not those of the data, "
            f"{', '.join(class_names)}; build it with the class names of the data, in their order"
        )
    student.image_size = config.data.image_size
    names = list(dict.fromkeys(name for stage in config.stages for name in stage.teachers))
    given = teachers or {}
    wanted = dict.fromkeys(name for name in (*names, config.ancestor) if name and name not in given)
    detectors = {**load_teachers(list(wanted), class_names, Path(config.out), config.processes), **given}
    if config.ancestor:
        parts = inherit(student, detectors[config.ancestor], config.ancestor)
        console.print(f"student starts with {', '.join(parts)} of {config.ancestor}", highlight=False)
    arithmetic = config.teacher_arithmetic
    frozen = {name: FrozenTeacher(detectors[name], name, arithmetic) for name in names}
    pl.seed_everything(config.seed, verbose=False)  # again: a teacher may just have been trained
    together = [[frozen[name] for name in stage.teachers] for stage in config.stages]
    task = DistillationTask(student, config.stages, together, config.loss, config.balance, config.balance_by)
    if config.compile_loss:
        task.compile_losses()
    return task


def load_teachers(
    references: Sequence[str], class_names: Sequence[str], out: Path, processes: tuple[int, int] = (1, 1)
) -> dict[str, Detector]:
    """Load teachers; those described by the YAML of a training run are trained first, unless they were already.

    Args:
        references: see `StageConfig`.
        class_names: of the data.
        out: folder of the student's run.
        processes: of the student's run, see `RunConfig.processes`.

    Raises:
        DfmsdError: one of the references is of no use; no teacher has been trained then.
        Stopped: a signal ended a teacher's training, which the next call goes on with.
    """
    for name in references:
        check_path("teacher", name)
    recipes = {name: read_config(TrainConfig, Path(name)) for name in references if name.endswith((".yaml", ".yml"))}
    for name in references:
        folder = Path(recipes[name].out if name in recipes else name)
        if folder.resolve() == out.resolve():
            raise DfmsdError(f"teacher {name}: {folder} is the student's own run folder; choose another `out`")
    loaded: dict[str, Detector] = {name: load_detector(name) for name in references if name not in recipes}
    missing = [name for name, recipe in recipes.items() if not _is_trained(name, recipe, class_names)]
    check_process_counts({name: recipes[name].processes for name in missing}, processes)
    for name in missing:
        recipe = recipes[name]
        console.print(f"teacher {name} is trained first, into {recipe.out}")
        made = train(recipe, resume=RunFolder(Path(recipe.out)).exists)
        if not made.finished:
            console.print(f"teacher {name} is not finished: the same command goes on with it")
            raise Stopped(made.status)
    return loaded | {name: load_detector(recipe.out) for name, recipe in recipes.items()}


def _is_trained(name: str, recipe: TrainConfig, class_names: Sequence[str]) -> bool:
    run = Path(recipe.out)
    if RunFolder(run).exists and not same_run(recipe, run):
        raise DfmsdError(f"{run} holds another run than {name} describes; remove it or change `out` in {name}")
    if RunFolder(run).finished:
        return True
    build_detector(recipe.model, class_names)  # refuses what cannot be built before any other teacher is trained
    return False


def _check_folder(run: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise DfmsdError("--resume keeps what is in the run folder and --overwrite deletes it; pass one of them")
    if run.exists() and not run.is_dir():
        raise DfmsdError(f"out: {run} is a file; name a folder")
    if resume and not RunFolder(run).exists:
        raise DfmsdError(f"{run} holds no run, so there is nothing to resume; leave out --resume")
    if resume and not same_run(config, run):
        raise DfmsdError(f"{run}/config.yaml differs from this config; resume with --config {run}/config.yaml")
    if not resume and not overwrite and RunFolder(run).exists:
        raise DfmsdError(f"{run} already holds a run; pass --resume, --overwrite or another --out")


def _open_folder(
    run: Path, config: RunConfig, task: DistillationTask, checkpoint: Path | None, *, overwrite: bool
) -> None:
    """Make the run folder, as late as this: an input that is refused costs nobody an older run."""
    if overwrite and RunFolder(run).exists:
        shutil.rmtree(run)
    tidy(run, checkpoint)
    if checkpoint is not None and checkpoint.name == PREVIOUS:
        _say(f"the last checkpoint is damaged; going on from the one before it, of step {saved_step(checkpoint)}")
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_config(config, run)
    except OSError as error:
        raise DfmsdError(f"out: cannot write to {run} ({error.strerror}); choose another folder") from error
    write_json(run / "environment.json", {**describe_environment(), "parameters": ownership(task)})


def _fit(
    config: DistillConfig, run: Path, data: CocoDataModule, task: DistillationTask, checkpoint: Path | None
) -> Result:
    module = DistillationModule(
        task,
        config.optim,
        config.seed,
        skip_nonfinite=config.skip_nonfinite > 0,
        sync_statistics=config.sync_statistics,
    )
    module.to(memory_format=torch.channels_last)
    epoch_end = EpochEnd(run, data.val_dataloader(), config.eval_every, _say)
    stop = StopOnInterrupt()
    save: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": True}
    shown = Dashboard(console, str(run), epoch_end) if console.is_terminal and is_first_process() else None
    callbacks: list[Callback] = [
        StepLog(run),
        FiniteCheck(run, config.skip_nonfinite),
        epoch_end,
        *([shown] if shown else []),
        BalanceReport(run, _say),
        stop,
        ModelCheckpoint(run, "best", monitor="AP", mode="max", **save),
        LastCheckpoint(run, stop, config.checkpoint_every),  # behind the best one, whose state it keeps
    ]
    start = time.perf_counter()
    devices, nodes = config.processes
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=config.epochs,
            accelerator="auto",
            devices=devices,
            num_nodes=nodes,
            strategy="ddp_find_unused_parameters_true" if config.world_size > 1 else "auto",
            precision=LIGHTNING_PRECISION[config.precision],  # type: ignore[arg-type]
            gradient_clip_val=config.optim.clip or None,
            callbacks=callbacks,
            plugins=DurableIO(),
            logger=build_loggers(config.loggers, run, saved_step(checkpoint) if checkpoint else None),
            log_every_n_steps=LOG_EVERY,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=run,
        )
        try:
            with shown or nullcontext(), explain_lost_process():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except Interrupted as stopped:
            return _deliver_unfinished(run, task, stopped.status)
    metrics = epoch_end.metrics
    if config.deliver == "best":
        module.load_state_dict(torch.load(run / "best.ckpt", weights_only=True, map_location="cpu")["state_dict"])
        metrics = evaluate(task.student, data.val_dataloader(), device=default_device())
    assert metrics is not None
    student = task.student.cpu().eval()
    if is_first_process():
        save_detector(student, run)
        write_json(run / "metrics.json", metrics)
        _say(f"AP {percent(metrics['AP'])}  {time.perf_counter() - start:.0f} s  {run}")
    trainer.strategy.barrier()  # before any process reads what the first one writes
    return Result(metrics, run, student)


def _deliver_unfinished(run: Path, task: DistillationTask, status: int) -> Result:
    student = task.student.cpu().eval()
    if is_first_process():
        save_detector(student, run)
        rest = f"--resume goes on from step {saved_step(run / LAST)}"
        _say(f"interrupted: {run}/student.safetensors is the student so far, not evaluated; {rest}")
    # A status of its own would have what started the processes end the first one, which is still writing.
    return Result({}, run, student, finished=False, status=status if is_first_process() else 0)


def _say(line: str) -> None:
    console.print(line, highlight=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Lightning's advice on things that are decided here."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ADVICE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
