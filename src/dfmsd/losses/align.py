"""Which student level learns from which teacher level, and how their shapes are made equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

Pairing = Literal["stride", "index"]
Resize = Literal["student", "teacher"]
MIN_PAIRS = 2
STRIDE_TOLERANCE = 2**0.5
"""Factor by which the strides of two levels may differ: half an octave, so that no two powers of two are taken."""


class LevelPair(NamedTuple):
    """A student level and the teacher level that it learns from."""

    student: LevelSpec
    teacher: LevelSpec

    def stride(self, resize: Resize) -> int:
        """Give the stride of both once one of them is resized, see `Align`."""
        return (self.teacher if resize == "student" else self.student).stride


def format_levels(levels: Sequence[LevelSpec]) -> str:
    """Describe levels in one line: name, stride and channels of each."""
    return ", ".join(f"{level.name} /{level.stride} x{level.channels}" for level in levels) or "none"


def pair_levels(
    student: Sequence[LevelSpec], teacher: Sequence[LevelSpec], pairing: Pairing = "stride"
) -> tuple[LevelPair, ...]:
    """Pair the levels of two pyramids, finest first.

    Args:
        student: levels of the student.
        teacher: levels of the teacher.
        pairing: ``stride`` pairs equal strides, and then what is left of the student with the nearest of what is left
            of the teacher, nearest first and each once, as far as `STRIDE_TOLERANCE` allows; ``index`` the first with
            the first and so on, whatever their strides (what PKD's released configs do).

    Raises:
        DfmsdError: fewer than two pairs.
    """
    if pairing == "index":
        pairs = tuple(LevelPair(s, t) for s, t in zip(student, teacher, strict=False))
    else:
        pairs = _pair_by_stride(student, teacher)
    if len(pairs) < MIN_PAIRS:
        whole = min(len(student), len(teacher)) >= MIN_PAIRS
        remedy = "a detector with common strides or loss.pairing: index" if whole else "detectors that have a pyramid"
        raise DfmsdError(
            f"student and teacher share {len(pairs)} pyramid level(s) by {pairing}, {MIN_PAIRS} are needed: "
            f"student has {format_levels(student)}; teacher has {format_levels(teacher)}; "
            f"choose {remedy}"
        )
    return pairs


def _pair_by_stride(student: Sequence[LevelSpec], teacher: Sequence[LevelSpec]) -> tuple[LevelPair, ...]:
    free = {level.stride: level for level in reversed(teacher)}  # the first of several with one stride
    taught = {level: free[level.stride] for level in student if level.stride in free}
    for level in taught.values():
        free.pop(level.stride, None)
    rest = [(_ratio(own, theirs), own, theirs) for own in student if own not in taught for theirs in free.values()]
    for ratio, own, theirs in sorted(rest, key=lambda pair: pair[0]):
        if ratio <= STRIDE_TOLERANCE and own not in taught and theirs.stride in free:
            taught[own] = free.pop(theirs.stride)
    return tuple(LevelPair(level, taught[level]) for level in student if level in taught)


def _ratio(first: LevelSpec, second: LevelSpec) -> float:
    low, high = sorted((first.stride, second.stride))
    return high / low


class Align(nn.Module):
    """Bring the two levels of a pair to one shape: 1x1 convolution of the student, then a resize of one of them.

    The convolution is the identity when the channels agree, the resize when the sizes do. The convolution
    is dropped after training.

    Args:
        pair: the two levels.
        project: have the convolution also where the channels agree. Channel 7 of one detector has nothing to do with
            channel 7 of another: without it the student rearranges its own channels after the teacher's, and again
            after the next stage's.
        resize: whose map is brought to the other one's size: the ``student``'s (bilinear), or the ``teacher``'s (the
            mean over the area of a cell where it is finer). A student's map of stride 8 cannot say what differs within
            a cell, however it is enlarged; a teacher's of stride 4 then costs four times the loss for nothing.
    """

    def __init__(self, pair: LevelPair, *, project: bool = False, resize: Resize = "student") -> None:
        super().__init__()
        self.resize: Resize = resize
        student, teacher = pair.student.channels, pair.teacher.channels
        alike = student == teacher and not project
        self.project: nn.Module = nn.Identity() if alike else nn.Conv2d(student, teacher, 1)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Align ``N x C_S x H' x W'`` and ``N x C_T x H x W``; both become ``N x C_T x`` the one or the other size."""
        projected: Tensor = self.project(student)
        if self.resize == "student" and projected.shape[-2:] != teacher.shape[-2:]:
            projected = F.interpolate(projected, size=teacher.shape[-2:], mode="bilinear", align_corners=False)
        return projected, resize_teacher(teacher, student, self.resize)


def resize_teacher(teacher: Tensor, student: Tensor, resize: Resize) -> Tensor:
    """Bring a teacher's map ``N x C x H x W`` to the size of a student's where ``resize`` is ``teacher``."""
    if resize == "student" or teacher.shape[-2:] == student.shape[-2:]:
        return teacher
    if teacher.shape[-2] > student.shape[-2]:
        return F.adaptive_avg_pool2d(teacher, (student.shape[-2], student.shape[-1]))
    return F.interpolate(teacher, size=student.shape[-2:], mode="bilinear", align_corners=False)
