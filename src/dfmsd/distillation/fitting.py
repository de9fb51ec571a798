"""The fit of the bases that a stage's teachers are rotated into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from dfmsd.detectors.base import Detector
from dfmsd.detectors.inference import eval_mode
from dfmsd.distillation.lesson import Lesson
from dfmsd.losses.basis import Correlation
from dfmsd.types import Batch, FeaturePyramid


def unfitted(lessons: Sequence[Lesson]) -> tuple[Lesson, ...]:
    """Return the lessons whose basis is not fitted yet."""
    return tuple(
        lesson for lesson in lessons if lesson.criterion.basis is not None and not lesson.criterion.basis.fitted
    )


def fit_bases(
    lessons: Sequence[Lesson], former: Lesson | None, student: Detector, batches: Sequence[Batch]
) -> dict[str, dict[str, Correlation]]:
    """Fit the bases of a stage that are not fitted yet.

    Args:
        lessons: of the stage.
        former: the lesson whose target is the reference of ``basis: former``.
        student: the reference of ``basis: student``, as it enters the stage.
        batches: images on the device of the student and the stage's teachers.

    Returns:
        Label of the teacher -> its level -> correlation with the reference's channels of the same index, before and
        after.
    """
    fits = {}
    for lesson in unfitted(lessons):
        basis = lesson.criterion.basis
        reference: Callable[[Batch], FeaturePyramid] = partial(_student_features, student)
        assert basis is not None
        if basis.former:
            assert former is not None
            former.teacher.to(batches[0].images.device)
            reference = former.target
        fits[lesson.label] = basis.fit_to(batches, lesson.features, reference)
    return fits


@torch.no_grad()
def _student_features(student: Detector, batch: Batch) -> FeaturePyramid:
    with eval_mode(student):
        return student.features(batch.images)
