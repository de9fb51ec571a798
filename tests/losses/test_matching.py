"""Matching of size ranges, by hand and against all matchings."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfmsd.losses.matching import Range, match_ranges


def ranges(*bounds: float) -> list[Range]:
    return list(pairwise([0.0, *bounds, math.inf]))


def octaves(first: Range, second: Range, lowest: float, highest: float) -> float:
    lower = max(lowest, first[0], second[0])
    upper = min(highest, first[1], second[1])
    return max(0.0, math.log2(upper) - math.log2(lower))


def test_equal_ranges_are_matched_one_to_one() -> None:
    levels = ranges(64, 128, 256, 512)
    assert match_ranges(levels, levels) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]


def test_shifted_ranges_are_matched_by_size() -> None:
    assert match_ranges(ranges(64, 128), ranges(16, 64, 128)) == [(0, 1), (1, 2), (2, 3)]
    assert match_ranges([(64.0, 128.0), (128.0, 256.0)], [(32.0, 64.0), (64.0, 128.0)]) == [(0, 1)]


def test_the_larger_overlap_wins() -> None:
    # 100..200 shares log2(1.5) with 50..150 and log2(200 / 150) = 0.42 with 150..300
    assert match_ranges([(100.0, 200.0)], [(50.0, 150.0), (150.0, 300.0)]) == [(0, 0)]
    assert match_ranges([(100.0, 250.0)], [(50.0, 150.0), (150.0, 300.0)]) == [(0, 1)]


def test_an_open_end_lies_an_octave_beyond_all_bounds() -> None:
    # the ends are 20 and 200: 0..100 is 20..100, and shares 1 octave with 0..40, log2(100 / 40) = 1.32 with 40..inf
    assert match_ranges([(0.0, 100.0)], [(0.0, 40.0), (40.0, math.inf)]) == [(0, 1)]
    assert match_ranges([(0.0, 75.0)], [(0.0, 40.0), (40.0, math.inf)]) == [(0, 0)]


@pytest.mark.parametrize(("first", "second"), [([], []), ([], ranges(8)), (ranges(8), [])])
def test_no_ranges_have_no_matches(first: list[Range], second: list[Range]) -> None:
    assert match_ranges(first, second) == []


def test_one_level_for_all_sizes_matches_another() -> None:
    assert match_ranges(ranges(), ranges()) == [(0, 0)]


BOUNDS = st.lists(st.integers(4, 1000), max_size=4, unique=True).map(lambda values: ranges(*sorted(values)))


@given(BOUNDS, BOUNDS)
def test_no_matching_in_order_overlaps_more(first: list[Range], second: list[Range]) -> None:
    bounds = [bound for pair in (*first, *second) for bound in pair if 0 < bound < math.inf] or [1.0]
    ends = (min(bounds) / 2, max(bounds) * 2)
    totals = [
        sum(octaves(first[i], second[j], *ends) for i, j in zip(rows, columns, strict=True))
        for count in range(min(len(first), len(second)) + 1)
        for rows in combinations(range(len(first)), count)
        for columns in combinations(range(len(second)), count)
    ]
    matches = match_ranges(first, second)
    parts = [octaves(first[i], second[j], *ends) for i, j in matches]
    assert sum(parts) == pytest.approx(max(totals))
    assert all(part > 0 for part in parts)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(matches))  # in order, each at most once


@given(BOUNDS, BOUNDS)
def test_scaling_all_sizes_changes_nothing(first: list[Range], second: list[Range]) -> None:
    scaled = ([(4 * lower, 4 * upper) for lower, upper in levels] for levels in (first, second))
    assert match_ranges(*scaled) == match_ranges(first, second)


@given(BOUNDS)
def test_every_range_matches_itself(levels: list[Range]) -> None:
    assert match_ranges(levels, levels) == [(index, index) for index in range(len(levels))]
