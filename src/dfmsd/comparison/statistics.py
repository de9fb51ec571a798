"""Statistics of paired differences over a few seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 10_000
MIN_SEEDS = 3
"""Minimum number of seeds for an interval."""


def paired_differences(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[int, float]:
    """Subtract the baseline with the same seed; seeds missing from either are left out.

    Args:
        values: seed -> value.
        baseline: seed -> value.
    """
    return {seed: value - baseline[seed] for seed, value in values.items() if seed in baseline}


def sample_deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (``n - 1``); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean; None for fewer than `MIN_SEEDS` values.

    Args:
        values: for example paired differences.
        level: share of the resampled means inside the interval, 0..1.
        resamples: number of resamples with replacement.
        seed: of the resampling, so that equal values give equal intervals.
    """
    if len(values) < MIN_SEEDS:
        return None
    draws = np.random.default_rng(seed).choice(np.asarray(values, dtype=float), size=(resamples, len(values)))
    low, high = np.quantile(draws.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def gap_recovery(student: float, baseline: float, teacher: float) -> float | None:
    """Return ``(student - baseline) / (teacher - baseline)``; None if the teacher is not better than the baseline."""
    return (student - baseline) / (teacher - baseline) if teacher > baseline else None
