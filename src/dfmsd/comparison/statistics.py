"""Statistics of paired differences over a few seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

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


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return Student's confidence interval of the mean; None for fewer than `MIN_SEEDS` values.

    ``mean ± t * s / sqrt(n)``, where ``t`` is the quantile of Student's distribution with ``n - 1`` degrees of freedom
    and ``s`` the sample standard deviation. It takes the values as independent draws from a normal distribution.

    Args:
        values: for example paired differences.
        level: probability that such an interval holds the true mean, 0..1.
    """
    if len(values) < MIN_SEEDS:
        return None
    from scipy import stats  # takes half a second, and only tables of results need it

    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def gap_recovery(student: float, baseline: float, teacher: float) -> float | None:
    """Return ``(student - baseline) / (teacher - baseline)``; None if the teacher is not better than the baseline."""
    return (student - baseline) / (teacher - baseline) if teacher > baseline else None
