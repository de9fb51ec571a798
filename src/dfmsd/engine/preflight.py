"""Everything that can be refused before the first step, and the tables that let a user see what will happen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Column, Table

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.distillation.checks import TermScale, check_classes, check_teacher_ap, ownership, term_scales
from dfmsd.distillation.task import DistillationTask, Lesson
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.teachercache import CachePlan, try_out
from dfmsd.evaluation.evaluate import evaluate, percent
from dfmsd.losses.align import format_levels
from dfmsd.types import LevelSpec
from dfmsd.utils.classes import common_classes


@dataclass
class Preflight:
    """What the checks found.

    Attributes:
        levels: one line per detector: its pyramid.
        pairs: one line per stage and teacher: which level learns from which.
        ap: AP before training in this pipeline, 0..1: of ``student`` and of each teacher by name; None where a teacher
            knows none of the data's classes, so that nobody can tell.
        pearson: of each teacher that knows no class at all, in place of its AP: correlation of its features with the
            student's, aligned but not trained yet, on one batch, as the mean over the paired levels; -1..1.
        parameters: count by owner.
        terms: size of every term of every stage on one batch.
        cache: what the teacher caches will hold, if there are any.
    """

    levels: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, str] = field(default_factory=dict)
    ap: dict[str, float | None] = field(default_factory=dict)
    pearson: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    terms: list[TermScale] = field(default_factory=list)
    cache: str | None = None


def preflight(
    task: DistillationTask,
    data: CocoDataModule,
    *,
    images: int | None = None,
    allow_weak_teacher: bool = False,
    device: torch.device | str = "cpu",
    cache: CachePlan | None = None,
) -> Preflight:
    """Check a distillation before its first step; the task is left as it was.

    Args:
        task: student, teachers and losses.
        data: the data set of the run.
        images: validation images that AP is measured on; None takes all.
        allow_weak_teacher: go on with a teacher that lacks classes, measures about 0 or is below the student.
        device: where to measure.
        cache: the teacher caches of the run.

    Raises:
        DfmsdError: a teacher that cannot teach, a term that would not, or features that cannot be stored.
    """
    found = Preflight(levels={"student": format_levels(task.student.levels)}, parameters=ownership(task))
    teachers = {teacher.name: teacher for teacher in task.every_teacher}
    for name, teacher in teachers.items():
        found.levels[name] = format_levels(teacher.levels)
    for index in range(len(task.stages)):
        for lesson in task.lessons_of(index):
            label = f"{lesson.label}, " if lesson.label else ""
            found.pairs[f"stage {index + 1}: {label}{lesson.teacher.name}"] = _pairs(lesson)
    headed = {name: teacher for name, teacher in teachers.items() if teacher.detector.class_names}
    if not allow_weak_teacher:
        for name, teacher in headed.items():
            check_classes(name, teacher.detector.class_names, data.class_names)
    task.to(device)
    _measure(found, task, data, list(teachers.values()), images, device)
    if not allow_weak_teacher:
        for name in headed:
            check_teacher_ap(name, found.ap[name] or 0.0, found.ap["student"] or 0.0)
    if teachers:
        batch = next(iter(data.train_dataloader())).to(device)
        found.terms = term_scales(task, batch)
        found.pearson = {name: _correlation(task, teacher) for name, teacher in teachers.items() if name not in headed}
        if cache is not None:
            try_out(cache, batch.images)
            found.cache = str(cache)
    return found


def _correlation(task: DistillationTask, teacher: FrozenTeacher) -> float:
    """Mean over the levels of what the teacher's first lesson has just measured."""
    lessons = (lesson for index in range(len(task.stages)) for lesson in task.lessons_of(index))
    measured = next(lesson.criterion.diagnostics for lesson in lessons if lesson.teacher is teacher)
    return float(torch.stack(list(measured.values())).mean())


def _pairs(lesson: Lesson) -> str:
    pairs = dict.fromkeys(lesson.criterion.pairs)  # once, though several methods of a sum may have it
    return ", ".join(f"{_level(pair.student)} <- {_level(pair.teacher)}" for pair in pairs)


def _level(level: LevelSpec) -> str:
    return f"{level.name} (/{level.stride}, {level.channels})"


def _measure(
    found: Preflight,
    task: DistillationTask,
    data: CocoDataModule,
    teachers: Sequence[FrozenTeacher],
    images: int | None,
    device: torch.device | str,
) -> None:
    for teacher in teachers:
        teacher.to(device)
        if common_classes(teacher.detector.class_names, data.class_names):
            found.ap[teacher.name] = evaluate(teacher.detector, data.val_dataloader(), limit=images)["AP"] or 0.0
        else:
            found.ap[teacher.name] = None
    if teachers:
        found.ap["student"] = evaluate(task.student, data.val_dataloader(), limit=images)["AP"] or 0.0


def _quality(found: Preflight, name: str) -> str:
    if name in found.pearson:
        return f"no head; pearson {found.pearson[name]:.3f}"
    unknown = name in found.ap and found.ap[name] is None
    return "unknown" if unknown else percent(found.ap.get(name))


def print_preflight(found: Preflight, console: Console) -> None:
    """Print the findings as tables."""
    table = Table(
        Column("detector", overflow="fold"), "levels: name /stride xchannels", "AP before", title="pre-flight"
    )
    for name, levels in found.levels.items():
        table.add_row(name, levels, _quality(found, name))
    console.print(table)
    for stage, pairs in found.pairs.items():
        console.print(f"{stage}: {pairs}", highlight=False)
    counts = ", ".join(f"{name} {count:,}" for name, count in found.parameters.items())
    console.print(f"parameters: {counts} (student and layers are trained, teachers are not)", highlight=False)
    if found.cache is not None:
        console.print(found.cache, highlight=False)
    if found.terms:
        table = Table("stage", "term", "value", "gradient norm on the student", "relative to the detector's own loss")
        for number in sorted({term.stage for term in found.terms}):
            rows = [term for term in found.terms if term.stage == number]
            own = next(term.gradient for term in rows if term.name == "task")
            for term in rows:
                table.add_row(
                    str(number), term.name, f"{term.value:.3f}", f"{term.gradient:.3f}", f"{term.gradient / own:.2f}"
                )
        console.print(table)
