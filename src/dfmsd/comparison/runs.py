"""Runs of a comparison: one folder per pair, method and seed, with the baseline shared by all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.methods import BASELINE, INHERIT_ONLY, Method
from dfmsd.detectors import Detector, build_detector
from dfmsd.detectors.classnames import check_names, with_names
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.build import inherit_weights
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import build_task
from dfmsd.engine.saved_config import refuse_another
from dfmsd.engine.teachers import untrained_teacher
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.utils.coerce import AUTO


@dataclass(frozen=True)
class PlannedRun:
    """One run, whether it has started or not.

    Attributes:
        pair: name of the pair.
        method: the method compared.
        config: of the run; its ``out`` is the run folder.
    """

    pair: str
    method: Method
    config: DistillConfig

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Path(self.config.out))

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return self.folder.finished

    def __str__(self) -> str:
        pair = "" if self.method.name == BASELINE else f"{self.pair}: "
        return f"{pair}{self.method.name}, seed {self.config.seed}"


@dataclass(frozen=True)
class SkippedMethod:
    """A method that does not apply to a pair."""

    pair: str
    method: Method
    reason: str


def plan_run(config: CompareConfig, pair: str, method: Method, seed: int) -> PlannedRun:
    """Derive the config of one run.

    Raises:
        DfmsdError: the method needs more teachers than the pair has, or the config is invalid.
    """
    teachers = config.pairs[pair]
    parent = Path(config.out, BASELINE) if method.name == BASELINE else Path(config.out, pair, method.slug(teachers))
    run = DistillConfig(
        out=str(parent / f"seed-{seed}"),
        data=config.data if method.losses or config.data.labels_images else config.data.labeled_only(),
        optim=config.optim,
        seed=seed,
        precision=config.precision,
        deliver=config.deliver,
        ema=config.ema,
        eval_every=config.eval_every,
        student=config.student,
        stages=method.stages(teachers, config.epochs),
        loss=method.loss(config.loss_options) if method.losses else {},
        balance=config.balances.get(method.family, config.balance),
        balance_schedule=config.balance_schedule,
        teacher_cache=config.used_cache if method.losses else None,
        teacher_classes=config.teacher_classes,
        teacher_size=config.teacher_size if method.losses else None,
    )
    if not method.losses:
        run = run.without_teachers()
    return PlannedRun(pair, method, replace(run, inherit=_inherited(config, method, teachers)))


def _inherited(config: CompareConfig, method: Method, teachers: Sequence[str]) -> bool | str:
    """Return the ``inherit`` of a run."""
    if isinstance(config.inherit, int) and (method.losses or method.name == INHERIT_ONLY):
        return teachers[config.inherit - 1]
    if method.name == INHERIT_ONLY:
        return teachers[0]
    return AUTO if config.inherit == AUTO and method.losses else False


def plan_runs(
    config: CompareConfig, methods: Sequence[Method], pair: str
) -> tuple[list[PlannedRun], list[SkippedMethod]]:
    """Derive the configs of all runs of a pair, ordered by seed.

    Raises:
        DfmsdError: a run's config is invalid, or its folder contains a different run.
    """
    runs: list[PlannedRun] = []
    skipped: list[SkippedMethod] = []
    available = len(config.pairs[pair])
    for method in methods:
        needed = max((number for stage in method.plan for number in stage.teachers), default=1)
        if needed > available:
            skipped.append(SkippedMethod(pair, method, f"needs T{needed}, the pair has {available} teacher(s)"))
        else:
            runs += [plan_run(config, pair, method, seed) for seed in config.seeds]
    for run in runs:
        refuse_another(run.config, run.folder, "this config describes", "remove it or change out")
    return sorted(runs, key=lambda run: config.seeds.index(run.config.seed)), skipped


def build_tasks(
    config: CompareConfig, runs: Sequence[PlannedRun], class_names: Sequence[str]
) -> tuple[dict[str, tuple[DistillConfig, DistillationTask]], list[SkippedMethod]]:
    """Build the task of each method of a pair, with a shared student and teachers that need not be trained yet.

    Args:
        config: the comparison.
        runs: of one pair.
        class_names: of the data.

    Returns:
        Method -> config and task, and the methods whose losses do not apply to the pair.

    Raises:
        DfmsdError: the student or a teacher cannot be built.
    """
    student = build_detector(config.student, class_names, config.teacher_classes)
    references = ((run.config.ancestor, *stage.teachers) for run in runs for stage in run.config.stages)
    teachers: dict[str, Detector] = {
        name: untrained_teacher(name, class_names) for name in dict.fromkeys(chain.from_iterable(references)) if name
    }
    check_names(config.teacher_classes, class_names, [each.class_names for each in teachers.values()] or None)
    teachers = {name: with_names(teacher, config.teacher_classes) for name, teacher in teachers.items()}
    tasks: dict[str, tuple[DistillConfig, DistillationTask]] = {}
    skipped: list[SkippedMethod] = []
    for run in {run.method.name: run for run in runs}.values():
        try:
            inherit_weights(run.config, student, teachers)  # refused where they do not fit
            # inherit=False: build_task would print each time what is inherited
            task = build_task(replace(run.config, inherit=False), class_names, student=student, teachers=teachers)
            tasks[run.method.name] = run.config, task
        except DfmsdError as error:
            skipped.append(SkippedMethod(run.pair, run.method, str(error)))
    return tasks, skipped
