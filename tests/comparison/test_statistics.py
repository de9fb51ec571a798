from __future__ import annotations

import numpy as np
import pytest

from dfmsd.comparison.statistics import gap_recovery, paired_differences, sample_deviation, student_interval


def test_differences_are_paired_by_seed() -> None:
    assert paired_differences({0: 3.0, 1: 5.0, 7: 9.0}, {1: 4.5, 0: 1.0, 3: 0.0}) == {0: 2.0, 1: 0.5}


def test_sample_deviation() -> None:
    assert sample_deviation([1.0, 2.0, 6.0]) == pytest.approx((((-2) ** 2 + (-1) ** 2 + 3**2) / 2) ** 0.5)
    assert sample_deviation([1.0]) is None


def test_interval_of_a_textbook() -> None:
    low, high = student_interval([1.0, 2.0, 6.0]) or (0.0, 0.0)  # mean 3, deviation sqrt(7), t = 4.303 for two degrees
    assert (low, high) == pytest.approx((3 - 4.303 * (7 / 3) ** 0.5, 3 + 4.303 * (7 / 3) ** 0.5), abs=1e-3)
    narrow = student_interval([1.0, 2.0, 6.0], level=0.5) or (0.0, 0.0)
    assert low < narrow[0] < 3.0 < narrow[1] < high


def test_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(2000, 3))
    ends = [student_interval(values.tolist(), level=0.8) or (0.0, 0.0) for values in draws]
    assert np.mean([low < 1.0 < high for low, high in ends]) == pytest.approx(0.8, abs=0.03)


def test_interval_of_few_and_of_equal_seeds() -> None:
    assert student_interval([1.0, 2.0]) is None
    assert student_interval([1.5, 1.5, 1.5]) == (1.5, 1.5)


def test_gap_recovery() -> None:
    assert gap_recovery(0.36, 0.32, 0.40) == pytest.approx(0.5)
    assert gap_recovery(0.30, 0.32, 0.40) == pytest.approx(-0.25)
    assert gap_recovery(0.36, 0.32, 0.32) is None
