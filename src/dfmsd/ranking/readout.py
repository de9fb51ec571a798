"""How well a linear map reads one detector's features on objects from another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.losses.align import LevelPair
from dfmsd.losses.basis import LevelMoments, common_size
from dfmsd.losses.functional import object_cells
from dfmsd.ranking.regression import Explained, explain, r_squared
from dfmsd.types import Batch, FeaturePyramid

Features = Callable[[Tensor], FeaturePyramid]
"""Images, ``N x 3 x H x W`` -> pyramid."""


class Readout(NamedTuple):
    """Share of the variance on objects that a ridge regression explains on other images, at most 1.

    Both are means over channels, pooled over the cells of the paired levels; None if no cell lies in an object.
    """

    teacher: float | None
    """Of the teacher's levels, read from the student's."""
    student: float | None
    """The other way round."""


def read_out(pairs: Sequence[LevelPair], batches: Iterable[Batch], student: Features, teacher: Features) -> Readout:
    """Read each of two detectors' levels from the other's: fitted on every other image, and measured on the rest.

    Each half is measured once. The finer map of a pair is averaged to the size of the coarser one, and the cells are
    those whose center lies in a box.

    Args:
        pairs: paired levels.
        batches: images with their boxes, at least two images.
        student: the student's features, without gradient.
        teacher: the teacher's.
    """
    halves = [[LevelMoments(pair.teacher.channels, pair.student.channels) for pair in pairs] for _ in range(2)]
    seen = 0
    for batch in batches:
        of_teacher, of_student = teacher(batch.images), student(batch.images)
        turn = (torch.arange(len(batch.images), device=batch.images.device) + seen) % 2
        seen += len(turn)
        for index, pair in enumerate(pairs):
            source, target = of_teacher[pair.teacher.name], of_student[pair.student.name]
            stride = max(pair.teacher.stride, pair.student.stride)
            boxes = [each["boxes"] for each in batch.targets]
            inside = object_cells(boxes, stride, common_size(source, target)) > 0
            for half, levels in enumerate(halves):
                levels[index].add(source, target, inside & (turn == half)[:, None, None, None])
    to_teacher: list[Explained] = []
    to_student: list[Explained] = []
    for fit, held_out in [*zip(*halves, strict=True), *zip(*halves[::-1], strict=True)]:
        if fit.cells and held_out.cells:
            of_student_, of_teacher_ = slice(fit.split, None), slice(fit.split)
            to_teacher.append(explain(fit, held_out, of_student_, of_teacher_))
            to_student.append(explain(fit, held_out, of_teacher_, of_student_))
    return Readout(r_squared(to_teacher), r_squared(to_student))
