"""What can be said about a difference from a few paired seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 10_000
FEWEST = 3
"""Seeds below which an interval would say nothing."""


def paired_differences(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[int, float]:
    """Subtract the baseline with the same seed; seeds that one of the two lacks are left out.

    Args:
        values: seed -> value.
        baseline: seed -> value.
    """
    return {seed: value - baseline[seed] for seed, value in values.items() if seed in baseline}


def sample_deviation(values: Sequence[float]) -> float | None:
    """Give the sample standard deviation (n - 1); none for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Give the percentile bootstrap interval of the mean; none for fewer than three values.

    Args:
        values: such as paired differences.
        level: share of the resampled means inside, 0..1.
        resamples: drawn with replacement.
        seed: of the draws: the same values give the same interval.
    """
    if len(values) < FEWEST:
        return None
    draws = np.random.default_rng(seed).choice(np.asarray(values, dtype=float), size=(resamples, len(values)))
    low, high = np.quantile(draws.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def gap_recovery(student: float, baseline: float, teacher: float) -> float | None:
    """Give ``(student - baseline) / (teacher - baseline)``; none where the teacher is not above the baseline."""
    return (student - baseline) / (teacher - baseline) if teacher > baseline else None
