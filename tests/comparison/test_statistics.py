from __future__ import annotations

import itertools

import numpy as np
import pytest

from dfmsd.comparison.statistics import bootstrap_interval, gap_recovery, paired_differences, sample_deviation


def test_differences_are_paired_by_seed() -> None:
    assert paired_differences({0: 3.0, 1: 5.0, 7: 9.0}, {1: 4.5, 0: 1.0, 3: 0.0}) == {0: 2.0, 1: 0.5}


def test_sample_deviation() -> None:
    assert sample_deviation([1.0, 2.0, 6.0]) == pytest.approx((((-2) ** 2 + (-1) ** 2 + 3**2) / 2) ** 0.5)
    assert sample_deviation([1.0]) is None


def test_interval_matches_all_resamples() -> None:
    values = [0.5, 1.0, 2.5, 4.0]
    means = [sum(draw) / 4 for draw in itertools.product(values, repeat=4)]  # 256 of equal probability
    low, high = bootstrap_interval(values) or (0.0, 0.0)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.13)  # adjacent means are 0.125 apart
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.13)
    assert bootstrap_interval(values) == (low, high)
    narrow = bootstrap_interval(values, level=0.5) or (0.0, 0.0)
    assert low < narrow[0] < 2.0 < narrow[1] < high


def test_interval_matches_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).normal(1.0, 2.0, size=25)
    known = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert bootstrap_interval(values.tolist(), resamples=20_000) == pytest.approx(tuple(known), abs=0.05)


def test_interval_of_few_and_of_equal_seeds() -> None:
    assert bootstrap_interval([1.0, 2.0]) is None
    assert bootstrap_interval([1.5, 1.5, 1.5]) == (1.5, 1.5)


def test_gap_recovery() -> None:
    assert gap_recovery(0.36, 0.32, 0.40) == pytest.approx(0.5)
    assert gap_recovery(0.30, 0.32, 0.40) == pytest.approx(-0.25)
    assert gap_recovery(0.36, 0.32, 0.32) is None
