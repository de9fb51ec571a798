"""Layers of a loss that a stage goes on with, instead of starting with new ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Size

from dfmsd.distillation.lesson import Lesson
from dfmsd.distillation.stages import StageConfig, adds_labels
from dfmsd.errors import DfmsdError


def reuses_layers(stages: Sequence[StageConfig], lessons: Sequence[Sequence[Lesson]], index: int) -> bool:
    """Return whether a stage goes on with the layers of the one before: ``fresh: false``, or it only adds labels.

    Args:
        stages: the plan.
        lessons: of each stage.
        index: stage, from 0.
    """
    return not stages[index].fresh or (adds_labels(stages, index) and _same_layers(lessons, index))


def reuse_layers(former: Sequence[Lesson], lessons: Sequence[Lesson]) -> None:
    """Copy the layers of a stage's lessons into those of the next, teacher by teacher; each keeps its own basis."""
    for lesson, source in zip(lessons, former, strict=True):
        lesson.criterion.load_state_dict(source.layers, strict=False)


def check_reuse(stages: Sequence[StageConfig], lessons: Sequence[Sequence[Lesson]]) -> None:
    """Refuse ``fresh: false`` where the layers of two stages are not alike.

    Args:
        stages: the plan.
        lessons: of each stage.

    Raises:
        DfmsdError: the layers differ in shape or number.
    """
    for index, stage in enumerate(stages):
        if not stage.fresh and not _same_layers(lessons, index):
            raise DfmsdError(
                f"stages.{index}.fresh: the layers of stages {index} and {index + 1} differ in shape or number, so "
                "they cannot be reused; set fresh: true"
            )


def _same_layers(lessons: Sequence[Sequence[Lesson]], index: int) -> bool:
    return _shapes(lessons[index]) == _shapes(lessons[index - 1])


def _shapes(lessons: Sequence[Lesson]) -> list[dict[str, Size]]:
    return [{name: value.shape for name, value in lesson.layers.items()} for lesson in lessons]
