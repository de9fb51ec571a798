"""Distillation losses of a run, restored with their training-only layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfmsd import losses
from dfmsd.detectors import Detector
from dfmsd.distillation.lesson import layers_name
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_recipe, read_run_config
from dfmsd.errors import DfmsdError
from dfmsd.losses.basis import PyramidBasis
from dfmsd.runfolder import RunFolder
from dfmsd.types import LevelSpec

PREFIX = "task.trainable.criteria."
"""Prefix of the training-only layers in a checkpoint."""


@dataclass(frozen=True)
class StageCriterion:
    """The loss of one stage and teacher.

    Attributes:
        stage: from 1.
        teacher: its name.
        criterion: the loss, in eval mode.
        trained: whether its layers come from the run; otherwise they are randomly initialized.
        note: why they do not.
        teacher_size: longer side of the images that the teacher saw, in pixels, if not that of the student's.
    """

    stage: int
    teacher: str
    criterion: losses.Criterion | losses.CriterionSum
    trained: bool
    note: str = ""
    teacher_size: int | None = None


def stage_criteria(model: str, student: Detector, teacher: str, detector: Detector) -> list[StageCriterion]:
    """Restore the losses of all stages in which a teacher taught a run's student feature maps.

    If there is no such stage, return the default loss with untrained layers as a single stage.

    Args:
        model: reference of the student; only a run folder has trained layers.
        student: the student.
        teacher: reference of the teacher, as in the run's config or another path to the same folder.
        detector: the teacher.

    Raises:
        DfmsdError: the run's config cannot be read, or the two detectors share too few levels.
    """
    run = RunFolder(Path(model))
    if not run.exists:
        note = f"{model} is not a run folder, so there are no training-only layers"
        return [_untrained(1, {}, teacher, student, detector.levels, note)]
    config = read_run_config(run.path)
    stages = [
        (stage, position)
        for stage, stage_config in enumerate(config.stages)
        for position, name in enumerate(stage_config.teachers)
        if _same_teacher(name, teacher)
    ]
    if not stages:
        note = f"{teacher} is not a teacher of {model}, so no layers were trained for the two"
        return [_untrained(1, config.loss, teacher, student, detector.levels, note)]
    state, reason = _delivered_state(run, config)
    levels = tuple(level.seen_at(config.teacher_scale) for level in detector.levels)
    criteria = []
    for stage, position in stages:
        loss = losses.replace_loss(config.loss, config.stages[stage].loss)
        layers = _select_layers(state, layers_name(stage, position))
        criterion = _restored(stage + 1, loss, teacher, student, levels, layers, reason)
        criteria.append(replace(criterion, teacher_size=config.teacher_size))
    return [each for each in criteria if each.criterion.pairs]


def _same_teacher(name: str, teacher: str) -> bool:
    if name == teacher or Path(name).resolve() == Path(teacher).resolve():
        return True
    if not name.endswith((".yaml", ".yml")) or not Path(name).is_file():
        return False
    return Path(read_recipe(Path(name)).out).resolve() == Path(teacher).resolve()


def _delivered_state(run: RunFolder, config: DistillConfig) -> tuple[Mapping[str, Tensor], str]:
    """Load the checkpoint of the delivered student; if it is missing, return the reason."""
    file = run.best_checkpoint if config.deliver == "best" else run.last_checkpoint
    if not file.is_file():
        return {}, f"{file}, which contains the training-only layers, does not exist"
    try:
        content: Any = torch.load(file, weights_only=True, map_location="cpu")
        return dict(content["state_dict"]), ""
    except Exception as error:  # damaged archives raise all kinds of errors
        raise DfmsdError(f"{file} cannot be read ({type(error).__name__}); remove it, or restore it") from error


def _select_layers(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    prefix = f"{PREFIX}{key}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _untrained(
    stage: int,
    loss: losses.LossConfig,
    teacher: str,
    student: Detector,
    levels: Sequence[LevelSpec],
    note: str,
    basis: PyramidBasis | None = None,
) -> StageCriterion:
    criterion = losses.build(loss, student.levels, list(levels), basis=basis).eval()
    # a loss without parameters needs no training
    return StageCriterion(stage, teacher, criterion, not any(True for _ in criterion.parameters()), note)


def _basis_of(state: Mapping[str, Tensor], levels: Sequence[LevelSpec]) -> PyramidBasis | None:
    """Build the basis that a checkpoint's layers contain, if they do."""
    channels = {level.name: state.get(f"basis.maps.{level.name}.weight") for level in levels}
    references = {
        level.name: level._replace(channels=len(weight))
        for level in levels
        if (weight := channels[level.name]) is not None
    }
    return PyramidBasis(levels, references) if references else None


def _restored(
    stage: int,
    loss: losses.LossConfig,
    teacher: str,
    student: Detector,
    levels: Sequence[LevelSpec],
    state: Mapping[str, Tensor],
    reason: str,
) -> StageCriterion:
    basis = _basis_of(state, levels)
    untrained = _untrained(stage, loss, teacher, student, levels, reason, basis)
    if untrained.trained and basis is None:
        return replace(untrained, note="")
    if not state:
        return replace(untrained, note=reason or "the checkpoint does not contain these layers")
    try:
        untrained.criterion.load_state_dict(state)
    except RuntimeError:
        reason = "the layers of the checkpoint do not fit this student, teacher and loss"
        return _untrained(stage, loss, teacher, student, levels, reason)
    return replace(untrained, trained=True, note="")
