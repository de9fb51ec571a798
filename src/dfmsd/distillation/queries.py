"""Checks of detectors with queries, for losses that compare the predictions of their queries."""

from __future__ import annotations

from collections.abc import Sequence

from dfmsd.detectors.base import Detector
from dfmsd.distillation.heads import REMEDIES
from dfmsd.errors import DfmsdError
from dfmsd.losses import Criterion, CriterionSum
from dfmsd.losses.criterion_queries import QueryCriterion


def compares_queries(criterion: Criterion | CriterionSum) -> bool:
    """Return whether a loss, or one of a sum, compares the predictions of queries."""
    parts: Sequence[Criterion] = criterion.criteria if isinstance(criterion, CriterionSum) else [criterion]
    return any(isinstance(part, QueryCriterion) for part in parts)


def check_queries(student: Detector, teacher: Detector) -> None:
    """Refuse two detectors whose queries cannot be compared.

    Raises:
        DfmsdError: one of them has no queries, or their classes differ.
    """
    for detector, who in ((student, "the student"), (teacher, "the teacher")):
        if not detector.has_queries:
            raise DfmsdError(
                f"detrdistill matches the queries of two detectors, and {who} has none; use detectors of transformers "
                "(hf:) such as rt_detr for both, or a loss on features such as dfmsd"
            )
    if student.class_names != teacher.class_names:
        raise DfmsdError(
            f"detrdistill needs the same classes in the same order, but they differ: {student.class_names} (student), "
            f"{teacher.class_names} (teacher); {REMEDIES['classes']}, or choose a loss on features such as dfmsd"
        )
