"""Matching of two sequences of size ranges by their overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

Range = tuple[float, float]


def match_ranges(first: Sequence[Range], second: Sequence[Range]) -> list[tuple[int, int]]:
    r"""Match ranges so that their total overlap on a logarithmic scale is largest.

    $$\max \sum_{(i, j)} \log_2 \frac{\min(b_i, d_j)}{\max(a_i, c_j)}$$

    over the matchings of ranges $[a_i, b_i]$ and $[c_j, d_j]$ that keep the order, use each range at most once and pair
    only ranges that overlap. An open end, 0 or infinity, lies one octave beyond the outermost bound of both sequences.
    The alignment is found by dynamic programming in the product of the lengths.

    Args:
        first: lower and upper bound of each range, increasing.
        second: likewise.

    Returns:
        Indices of the matched ranges, in order.
    """
    bounds = [bound for pair in (*first, *second) for bound in pair if 0 < bound < math.inf]
    ends = (min(bounds, default=1.0) / 2, max(bounds, default=1.0) * 2)
    overlap = [[_overlap(a, b, ends) for b in second] for a in first]
    best = [[0.0] * (len(second) + 1) for _ in range(len(first) + 1)]  # of all matchings of the remaining ranges
    for i in reversed(range(len(first))):
        for j in reversed(range(len(second))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], overlap[i][j] + best[i + 1][j + 1])
    matches, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        if overlap[i][j] > 0 and best[i][j] == overlap[i][j] + best[i + 1][j + 1]:
            matches.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return matches


def _overlap(first: Range, second: Range, ends: Range) -> float:
    """Return the overlap of two ranges in octaves, open ends closed."""
    lower, upper = max(first[0], second[0], ends[0]), min(first[1], second[1], ends[1])
    return math.log2(upper / lower) if upper > lower else 0.0
