"""Pre-flight of a distillation: checks before the first step, and the tables that summarize them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Column, Table

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.splitcheck import annotated_classes
from dfmsd.detectors.inference import device_of
from dfmsd.distillation.checks import (
    TermScale,
    check_augmented_ap,
    check_classes,
    check_teacher_ap,
    ownership,
    term_scales,
)
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.pairing import PairedLevels, format_level, note_single_pair, paired_levels, pairing_tables
from dfmsd.engine.teachercache import CachePlan, try_out
from dfmsd.evaluation.augmented import augmented_ap
from dfmsd.evaluation.evaluate import evaluate, percent
from dfmsd.losses.align import format_levels
from dfmsd.utils.classes import common_classes


@dataclass
class Preflight:
    """Results of the pre-flight.

    Attributes:
        levels: detector -> its pyramid levels.
        pairs: stage and teacher -> which student level learns from which teacher level.
        pairing: one row per pair of levels, with their object sizes.
        ap: AP before training of ``student`` and of each teacher by name, 0..1; None for a teacher that has none of
            the data's classes.
        augmented: AP of the teachers on the same images augmented as in training, 0..1, where that changes more than
            their direction.
        pearson: for teachers without any classes, in place of the AP: correlation of their features with the
            student's, aligned but untrained, on one batch, averaged over the paired levels; -1..1.
        parameters: counts by owner.
        terms: size of every term of every stage on one batch.
        cache: size of the teacher caches, if there are any.
        notes: what else to know, such as classes or levels that a teacher lacks.
    """

    levels: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, str] = field(default_factory=dict)
    pairing: list[PairedLevels] = field(default_factory=list)
    ap: dict[str, float | None] = field(default_factory=dict)
    augmented: dict[str, float | None] = field(default_factory=dict)
    pearson: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    terms: list[TermScale] = field(default_factory=list)
    cache: str | None = None
    notes: list[str] = field(default_factory=list)


def preflight(
    task: DistillationTask,
    data: CocoDataModule,
    *,
    images: int | None = None,
    allow_weak_teacher: bool = False,
    device: torch.device | str = "cpu",
    cache: CachePlan | None = None,
) -> Preflight:
    """Check a distillation before its first step, without changing the task.

    Args:
        task: student, teachers and losses.
        data: the data set of the run.
        images: number of validation images to measure AP on; None uses all.
        allow_weak_teacher: accept a teacher that knows none of the classes, or has an AP of about 0 or below the
            student's.
        device: device to measure on.
        cache: the teacher caches of the run.

    Raises:
        DfmsdError: a teacher or loss term would teach nothing, or features cannot be stored.
    """
    findings = Preflight(levels={"student": format_levels(task.student.levels)}, parameters=ownership(task))
    if data.teacher_size is not None:
        findings.notes.append(
            f"the teachers see images of {data.teacher_size} pixels; levels are paired in pixels of the student's"
        )
    teachers = {teacher.name: teacher for teacher in task.every_teacher}
    for name, teacher in teachers.items():
        findings.levels[name] = format_levels(teacher.detector.levels)
    _list_pairs(findings, task, data)
    headed = _headed(teachers.values())
    if not allow_weak_teacher:
        findings.notes += _check_classes(headed, data)
    task.to(device)
    findings.ap = _measure_ap(task, data, teachers.values(), images, device)
    if not allow_weak_teacher:
        for name in headed:
            check_teacher_ap(name, findings.ap[name], findings.ap["student"])
    if data.config.unrepeated:
        _measure_augmented(findings, headed, data, images)
    if teachers:
        batch = next(iter(data.train_dataloader())).to(device)
        findings.terms = term_scales(task, batch)
        findings.pearson = {
            name: _correlation(task, teacher) for name, teacher in teachers.items() if name not in headed
        }
        if cache is not None:
            try_out(cache, batch.for_teachers)
            findings.cache = str(cache)
    return findings


def _list_pairs(findings: Preflight, task: DistillationTask, data: CocoDataModule) -> None:
    box_sizes = data.train_box_sizes()
    for index in range(len(task.stages)):
        for lesson in task.lessons_of(index):
            label = f"{lesson.label}, " if lesson.label else ""
            stage = f"stage {index + 1}: {label}{lesson.teacher.name}"
            pairs = list(dict.fromkeys(lesson.criterion.pairs))  # several methods of a sum share pairs
            pairing = (f"{format_level(pair.student)} <- {format_level(pair.teacher)}" for pair in pairs)
            findings.pairs[stage] = ", ".join(pairing) or "queries"
            findings.notes += note_single_pair(stage, pairs)
            findings.pairing += paired_levels(stage, lesson.criterion, box_sizes)


def _measure_augmented(
    findings: Preflight, teachers: Mapping[str, FrozenTeacher], data: CocoDataModule, images: int | None
) -> None:
    for name, teacher in teachers.items():
        batches = data.augmented_val_dataloader(images)
        findings.augmented[name] = augmented_ap(teacher.detector, batches, data.class_names)
        findings.notes += check_augmented_ap(name, findings.ap[name], findings.augmented[name])


def refuse_weak_teachers(
    task: DistillationTask,
    names: Collection[str],
    data: CocoDataModule,
    *,
    images: int | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Refuse trained teachers that would teach nothing, while others are still to be made.

    Args:
        task: student, teachers and losses.
        names: of the teachers to check.
        data: the data set of the run.
        images: number of validation images to measure AP on; None uses all.
        device: device to measure on.

    Raises:
        DfmsdError: a teacher knows none of the classes, or has an AP of about 0 or below the student's.
    """
    trained = _headed(teacher for teacher in task.every_teacher if teacher.name in names)
    _check_classes(trained, data)
    before = device_of(task.student)
    task.to(device)
    ap = _measure_ap(task, data, trained.values(), images, device)
    task.to(before)
    for name in trained:
        check_teacher_ap(name, ap[name], ap["student"])


def _headed(teachers: Iterable[FrozenTeacher]) -> dict[str, FrozenTeacher]:
    return {teacher.name: teacher for teacher in teachers if teacher.detector.class_names}


def _check_classes(teachers: Mapping[str, FrozenTeacher], data: CocoDataModule) -> list[str]:
    required = annotated_classes([data.train.coco, data.val.coco])
    lines = (check_classes(name, teacher.detector.class_names, required) for name, teacher in teachers.items())
    return [line for line in lines if line is not None]


def _correlation(task: DistillationTask, teacher: FrozenTeacher) -> float:
    """Return the correlation that `term_scales` has just measured in the teacher's first stage, averaged."""
    lessons = (lesson for index in range(len(task.stages)) for lesson in task.lessons_of(index))
    diagnostics = next(lesson.criterion.diagnostics for lesson in lessons if lesson.teacher is teacher)
    return float(torch.stack(list(diagnostics.values())).mean())


def _measure_ap(
    task: DistillationTask,
    data: CocoDataModule,
    teachers: Collection[FrozenTeacher],
    images: int | None,
    device: torch.device | str,
) -> dict[str, float | None]:
    """Return the AP of teachers by name, and of the ``student`` if there is any teacher."""
    ap: dict[str, float | None] = {}
    for teacher in teachers:
        teacher.to(device)
        ap[teacher.name] = None
        if common_classes(teacher.detector.class_names, data.class_names):
            ap[teacher.name] = evaluate(teacher.detector, data.teacher_val_dataloader(), limit=images)["AP"]
    if teachers:
        ap["student"] = evaluate(task.student, data.val_dataloader(), limit=images)["AP"]
    return ap


def _quality(findings: Preflight, name: str) -> str:
    if name in findings.pearson:
        return f"no head; pearson {findings.pearson[name]:.3f}"
    unknown = name in findings.ap and findings.ap[name] is None
    return "unknown" if unknown else percent(findings.ap.get(name))


def print_preflight(findings: Preflight, console: Console) -> None:
    """Print the results as tables."""
    table = Table(
        Column("detector", overflow="fold"), "levels: name /stride xchannels", "AP before", title="pre-flight"
    )
    if findings.augmented:
        table.add_column("AP, augmented")
    for name, levels in findings.levels.items():
        augmented = [percent(findings.augmented.get(name))] if findings.augmented else []
        table.add_row(name, levels, _quality(findings, name), *augmented)
    console.print(table)
    for table in pairing_tables(findings.pairing):
        console.print(table)
    counts = ", ".join(f"{name} {count:,}" for name, count in findings.parameters.items())
    console.print(f"parameters: {counts} (student and layers are trained, teachers are not)", highlight=False)
    for line in [*findings.notes, *([findings.cache] if findings.cache is not None else [])]:
        console.print(line, highlight=False)
    if findings.terms:
        table = Table("stage", "term", "value", "gradient norm on the student", "relative to the detector's own loss")
        for number in sorted({term.stage for term in findings.terms}):
            rows = [term for term in findings.terms if term.stage == number]
            of_task = next((term.gradient for term in rows if term.name == "task"), None)  # None without labels
            for term in rows:
                table.add_row(
                    str(number),
                    term.name,
                    f"{term.value:.3f}",
                    f"{term.gradient:.3f}",
                    "-" if of_task is None else f"{term.gradient / of_task:.2f}",
                )
        console.print(table)
