"""Which student level learns from which teacher level, and how their shapes are made equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

Pairing = Literal["stride", "index"]
MIN_PAIRS = 2
STRIDE_TOLERANCE = 2**0.5
"""Factor by which the strides of two levels may differ: half an octave, so that no two powers of two are taken."""


class LevelPair(NamedTuple):
    """A student level and the teacher level that it learns from."""

    student: LevelSpec
    teacher: LevelSpec


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
    """Bring a student level to a teacher level's shape: 1x1 convolution, then bilinear resize.

    The convolution is the identity when the channels agree, the resize when the sizes do. The convolution
    is dropped after training.

    Args:
        pair: the two levels.
        project: have the convolution also where the channels agree. Channel 7 of one detector has nothing to do with
            channel 7 of another: without it the student rearranges its own channels after the teacher's, and again
            after the next stage's.
    """

    def __init__(self, pair: LevelPair, *, project: bool = False) -> None:
        super().__init__()
        student, teacher = pair.student.channels, pair.teacher.channels
        alike = student == teacher and not project
        self.project: nn.Module = nn.Identity() if alike else nn.Conv2d(student, teacher, 1)

    def forward(self, student: Tensor, size: tuple[int, int]) -> Tensor:
        """Align ``N x C_S x H' x W'`` to ``N x C_T x`` ``size``."""
        aligned: Tensor = self.project(student)
        if aligned.shape[-2:] != size:
            aligned = F.interpolate(aligned, size=size, mode="bilinear", align_corners=False)
        return aligned
