"""Basis of a stage's teacher: which level is rotated into which reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dfmsd.errors import DfmsdError
from dfmsd.losses import Criterion, CriterionSum
from dfmsd.losses.basis import PyramidBasis
from dfmsd.types import LevelSpec


def build_basis(
    criterion: Criterion | CriterionSum,
    teacher: Sequence[LevelSpec],
    former: nn.Module | None,
) -> PyramidBasis:
    """Build the basis of a teacher's levels, which is still to be fitted.

    Args:
        criterion: the loss between student and teacher, which pairs their levels.
        teacher: levels of the teacher.
        former: the loss of the former stage, whose teacher is the reference; None takes the student.

    Raises:
        DfmsdError: the loss compares predictions, or the former teacher does not teach all levels.
    """
    if len(criterion.feature_terms) < len(criterion.terms):
        raise DfmsdError(
            "basis: the loss compares predictions, which no rotation of features changes; choose basis: own"
        )
    references = {pair.student.name: pair.student for pair in criterion.pairs}
    if isinstance(former, Criterion | CriterionSum):
        references = {pair.student.name: pair.teacher for pair in former.pairs}
    missing = [pair.student.name for pair in criterion.pairs if pair.student.name not in references]
    if missing:
        raise DfmsdError(
            f"basis: the former stage does not teach {', '.join(missing)} of the student, only "
            f"{', '.join(references)}; choose basis: student or own"
        )
    return PyramidBasis(teacher, {pair.teacher.name: references[pair.student.name] for pair in criterion.pairs})
