"""Object sizes that each pyramid level is responsible for, from the rules by which a detector assigns objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

SizeRange = tuple[float, float]
"""Lower and upper bound of object sizes, see `LevelSpec`."""


def with_sizes(levels: Sequence[LevelSpec], sizes: Sequence[SizeRange] | None) -> tuple[LevelSpec, ...]:
    """Add the sizes of each level, unless they are None or do not describe these levels.

    No range may be empty, and both bounds must increase from level to level.
    """
    if sizes is None or len(sizes) != len(levels) or not _increase(sizes):
        return tuple(levels)
    return tuple(
        level._replace(sizes=(float(lower), float(upper))) for level, (lower, upper) in zip(levels, sizes, strict=True)
    )


def stated_sizes(levels: Sequence[LevelSpec], sizes: Sequence[SizeRange]) -> tuple[LevelSpec, ...]:
    """Add sizes that a caller states.

    Raises:
        DfmsdError: There is not one range for each level, a range is empty, or the ranges do not increase.
    """
    if len(sizes) != len(levels):
        raise DfmsdError(f"sizes: expected a range for each of {len(levels)} levels, got {len(sizes)}")
    if not _increase(sizes):
        raise DfmsdError(
            f"sizes: expected ranges (lower, upper) with 0 <= lower < upper that increase from level to level, "
            f"got {list(sizes)}"
        )
    return with_sizes(levels, sizes)


def ranges_between(bounds: Sequence[float]) -> list[SizeRange]:
    """Return the ranges between bounds, the first of which starts at 0 and the last of which has no end."""
    return list(pairwise([0.0, *bounds, math.inf]))


def anchor_ranges(anchors: Sequence[Sequence[float]]) -> list[SizeRange]:
    """Return the range of each level of a detector with anchors.

    The bound between two levels is the geometric mean of the largest anchor of the finer one and the smallest anchor of
    the coarser one: a box of that size has equal IoU with both.

    Args:
        anchors: Square root of the area of each anchor of each level, in pixels, finest level first.
    """
    return ranges_between([math.sqrt(max(fine) * min(coarse)) for fine, coarse in pairwise(anchors)])


def two_stage_ranges(anchors: Sequence[Sequence[float]], first_pooling_bound: float | None) -> list[SizeRange] | None:
    """Return the range of each level of a two-stage detector, which uses its levels by two rules.

    Its proposals follow the sizes of anchors. Its box head pools a region from the level of the region's size, mostly a
    finer one. A bound is the geometric mean of those of the two rules. The second is continued beyond the coarsest
    level that regions are pooled from, since only the proposals use a coarser one.

    Args:
        anchors: As in `anchor_ranges`, of the proposals.
        first_pooling_bound: Size at which pooling changes from the finest level to the next; it doubles from level to
            level. None if pooling has no such rule.

    Returns:
        The ranges; None if the anchors do not grow from level to level.
    """
    ranges = anchor_ranges(anchors)
    if not _increase(ranges):
        return None
    if first_pooling_bound is None:
        return ranges
    pooling = [first_pooling_bound * 2**index for index in range(len(ranges) - 1)]
    return ranges_between([math.sqrt(upper * bound) for (_, upper), bound in zip(ranges[:-1], pooling, strict=True)])


def _increase(sizes: Sequence[SizeRange]) -> bool:
    nonempty = all(0 <= lower < upper for lower, upper in sizes)
    return nonempty and all(fine[0] < coarse[0] and fine[1] < coarse[1] for fine, coarse in pairwise(sizes))
