"""Checks before the first step: classes, teachers, parameter ownership and size of every loss term."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfmsd.distillation.balance import term_groups
from dfmsd.distillation.task import DistillationTask
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch
from dfmsd.utils.classes import common_classes, listed

MIN_TEACHER_AP = 0.01
AUGMENTED_SHARE = 0.75
"""A teacher with a smaller share of its AP left in augmented images is remarked upon."""
USUAL_CAUSES = "its pixels (mean and std, RGB or BGR, 0..1 or 0..255), class names, image size and checkpoint"
"""Why a good teacher may have a low AP, the most likely first."""


def check_classes(teacher: str, known: Sequence[str], required: Sequence[str]) -> str | None:
    """Refuse a teacher that knows no class of the data set.

    Args:
        teacher: its name, for the message.
        known: the teacher's class names.
        required: names of the data set's classes that have annotations.

    Returns:
        A line that names the classes that it lacks; None for a teacher that knows all.

    Raises:
        DfmsdError: it knows none.
    """
    common = set(common_classes(known, required).values())
    if not common:
        raise DfmsdError(
            f"teacher {teacher} knows none of the data's classes {listed(required)}; it knows {listed(known)}; map "
            "them in `teacher_classes` if only the names differ, train a teacher on this data, or pass "
            "`allow_weak_teacher` to imitate its features anyway"
        )
    missing = [name for index, name in enumerate(required) if index not in common]
    if not missing:
        return None
    return (
        f"teacher {teacher} does not know {listed(missing)} of the data's {len(required)} classes: its features teach, "
        "but its AP counts 0 there"
    )


def check_teacher_ap(teacher: str, teacher_ap: float | None, student_ap: float | None) -> None:
    """Refuse a teacher whose AP is about 0 or below the student's.

    Args:
        teacher: its name, for the message.
        teacher_ap: AP of the teacher on the validation images, measured with this run's data pipeline, 0..1; one that
            is None, unknown, is not refused.
        student_ap: AP of the student before training, 0..1; None if unknown.

    Raises:
        DfmsdError: the AP is too low.
    """
    if teacher_ap is None:
        return
    if teacher_ap < MIN_TEACHER_AP:
        problem = "about 0"
    elif student_ap is not None and teacher_ap < student_ap:
        problem = f"below the student's start ({100 * student_ap:.1f})"
    else:
        return
    raise DfmsdError(
        f"teacher {teacher} measures AP {100 * teacher_ap:.1f} in this pipeline, {problem}; "
        f"check {USUAL_CAUSES}, use a better teacher or pass `allow_weak_teacher`"
    )


def check_augmented_ap(teacher: str, plain: float | None, augmented: float | None) -> list[str]:
    """Return a line on a teacher that sees far less in augmented images; no line on one that does not.

    Args:
        teacher: its name.
        plain: its AP on the validation images, 0..1; None if unknown.
        augmented: the same on these images augmented as in training.
    """
    if plain is None or augmented is None or augmented >= AUGMENTED_SHARE * plain:
        return []
    return [
        f"teacher {teacher} has an AP of {100 * plain:.1f} in plain images, but {100 * augmented:.1f} in images "
        "augmented as in training, where it has to teach; one trained with the same augmentation would teach more"
    ]


def ownership(task: DistillationTask) -> dict[str, int]:
    """Count parameters by owner: ``student``, ``layers`` (training only), ``teachers`` (frozen)."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in task.trainable.named_children()}
    teachers = {id(teacher.detector): teacher.detector for teacher in task.every_teacher}.values()
    return {
        "student": parts["student"],
        "layers": parts["criteria"],
        "teachers": sum(p.numel() for teacher in teachers for p in teacher.parameters()),
    }


def check_optimizer(optimizer: torch.optim.Optimizer, task: DistillationTask) -> None:
    """Refuse an optimizer that does not hold exactly the trainable parameters.

    Raises:
        DfmsdError: parameters are missing, or the optimizer holds one that is not trained.
    """
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    required = {id(parameter): name for name, parameter in task.trainable.named_parameters() if parameter.requires_grad}
    missing = [name for key, name in required.items() if key not in owned]
    if missing:
        raise DfmsdError(f"not in the optimizer: {', '.join(missing[:5])}; pass task.trainable.parameters() to it")
    intruders = owned - {id(parameter) for parameter in task.trainable.parameters()}
    if intruders:
        raise DfmsdError(
            f"the optimizer holds {len(intruders)} tensor(s) that are not trained, such as a "
            "teacher's; pass only task.trainable.parameters() to it"
        )


class TermScale(NamedTuple):
    """Size of a term on one batch."""

    stage: int
    """Counted from 1."""
    name: str
    value: float
    gradient: float
    """Norm of its gradient with respect to the student's weights."""


def term_scales(task: DistillationTask, batch: Batch) -> list[TermScale]:
    """Measure every term of every stage on one batch, without changing the task.

    Raises:
        DfmsdError: a term is 0 or not finite, or the student or a loss layer gets no gradient.
    """
    scales: list[TermScale] = []
    with undisturbed(task):
        for index in range(len(task.stages)):
            task.enter_stage(index, begins=False)
            named = task(batch.images, batch.targets, larger=batch.larger)
            _check_values(named, index + 1, empty=not any(len(t["boxes"]) for t in task.targets_in_use(batch.targets)))
            _check_layers_learn(task, torch.stack(list(named.values())).sum(), index + 1)
            for name, value in term_groups(named).items():
                norm = _gradient_norm(value, task.student)
                if norm == 0 and value != 0:
                    raise DfmsdError(
                        f"stage {index + 1}: no gradient of {name} reaches the student; are its weights frozen, or is "
                        "its pyramid detached?"
                    )
                scales.append(TermScale(index + 1, name, float(value.detach()), norm))
    return scales


@contextmanager
def undisturbed(task: DistillationTask) -> Iterator[None]:
    """Switch to training mode, uncompiled, and restore the state, stage, modes and random state on exit."""
    compiled, task.compiled = task.compiled, None  # a compiled backward pass runs only once
    state = copy.deepcopy(task.state_dict())
    stage, modes = task.stage, {module: module.training for module in task.modules()}
    with torch.random.fork_rng():
        task.train()
        try:
            yield
        finally:
            task.stage, task.compiled = stage, compiled
            for module, training in modes.items():
                module.training = training
            task.load_state_dict(state)


def _check_values(named: dict[str, Tensor], stage: int, *, empty: bool) -> None:
    """Refuse terms that are not finite, or 0 on all levels of a batch with objects."""
    groups = term_groups(named)
    for name, value in named.items():
        if not torch.isfinite(value):
            raise DfmsdError(
                f"stage {stage}: {name} is {float(value.detach())} on the first batch; check the teacher's weights"
            )
        if groups[name.partition("/")[0]] == 0 and not name.startswith("task/") and not empty:
            raise DfmsdError(
                f"stage {stage}: {name} is exactly 0 on the first batch, so it would teach nothing; is the teacher the "
                "student itself, or a weight 0? Use another teacher, or leave the term out"
            )


def _check_layers_learn(task: DistillationTask, loss: Tensor, stage: int) -> None:
    layers = {
        name: layer
        for lesson in task.lessons
        for name, layer in lesson.named(dict(lesson.criterion.named_parameters())).items()
    }
    if not layers:
        return
    frozen = [name for name, layer in layers.items() if not layer.requires_grad]
    if frozen:
        raise DfmsdError(
            f"stage {stage}: {', '.join(frozen[:5])} cannot learn (requires_grad is False); only the student may be "
            "partly frozen, so make the layers of the loss trainable"
        )
    gradients = torch.autograd.grad(loss, list(layers.values()), retain_graph=True, allow_unused=True)
    idle = [name for name, gradient in zip(layers, gradients, strict=True) if gradient is None]
    if idle:
        raise DfmsdError(
            f"stage {stage}: no gradient reaches {', '.join(idle[:5])}; the loss does not use these layers: remove "
            "them from its parameters, or use them in its forward"
        )


def _gradient_norm(value: Tensor, module: nn.Module) -> float:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters or not value.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
