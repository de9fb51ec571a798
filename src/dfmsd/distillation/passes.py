"""One forward pass of the student, and one of a teacher, as far as the losses need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.detectors.base import Detector
from dfmsd.detectors.dense import HeadPass
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.losses import HeadSide
from dfmsd.types import FeaturePyramid, Queries, Target


class StudentPass(NamedTuple):
    """Outputs of a forward pass of the student."""

    pyramid: FeaturePyramid
    """Of all images."""
    labeled: FeaturePyramid
    """Of the images with targets, on which the detector's own losses are computed."""
    losses: dict[str, Tensor]
    """The detector's own losses; empty without targets."""
    head: HeadPass | None = None
    """What its dense head computed, if a loss compares that."""
    queries: Queries | None = None
    """The predictions of its queries, if a loss compares them."""


class TeacherPass(NamedTuple):
    """Outputs of a forward pass of a teacher."""

    pyramid: FeaturePyramid
    head: Mapping[str, HeadSide] | None = None
    """The outputs of its dense head by the student's level names, if a loss compares them."""
    queries: Queries | None = None
    """The predictions of its queries, if a loss compares them."""


def run_student(
    student: Detector,
    images: Tensor,
    targets: Sequence[Target],
    *,
    reused: int | None = None,
    queries: bool = False,
) -> StudentPass:
    """Run the student on all images and compute its losses on the first ones, which have targets.

    Without targets its head does not run, so that no weight and no statistic of it changes.

    Args:
        student: in training mode.
        images: ``N x 3 x H x W``, RGB in [0, 1].
        targets: of the first images; of all of them if a loss compares predictions.
        reused: convolutions of the dense head after the cut, for losses that compare dense predictions; None without.
        queries: whether a loss compares the predictions of queries.
    """
    if queries:
        pyramid, named, predicted = student.forward_with_queries(images, targets)
        return StudentPass(pyramid, pyramid, named, queries=predicted)
    if reused is not None:
        pyramid, named, head = student.forward_with_head(images, targets, reused)
        return StudentPass(pyramid, pyramid, named, head=head)
    if not targets:
        pyramid = student.features(images)
        return StudentPass(pyramid, pyramid, {})
    if len(images) == len(targets):
        pyramid, named = student(images, targets)
        return StudentPass(pyramid, pyramid, named)
    with_targets, others = images.tensor_split([len(targets)])
    labeled, named = student(with_targets, targets)
    rest = student.features(others)
    return StudentPass({name: torch.cat([level, rest[name]]) for name, level in labeled.items()}, labeled, named)


def run_teacher(
    teacher: FrozenTeacher, images: Tensor, keys: Sequence[str | None] = (), *, queries: bool = False
) -> TeacherPass:
    """Run a teacher up to its pyramid, or to the predictions of its queries.

    Args:
        teacher: the teacher.
        images: ``N x 3 x H x W``, RGB in [0, 1].
        keys: cache key of each image; predictions of queries are not cached.
        queries: whether a loss compares the predictions of queries.
    """
    if queries:
        pyramid, predicted = teacher.features_with_queries(images)
        return TeacherPass(pyramid, queries=predicted)
    return TeacherPass(teacher.features(images, keys))
