"""Standardization and correlation of feature maps.

Call these functions outside of autocast, on `full_precision` features. Within
`dfmsd.utils.distributed.shared_step` the batch is that of all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfmsd.utils.distributed import broadcast_from_first, statistics_sum

PER_CHANNEL = (0, 2, 3)
"""Dimensions that a channel's statistics are taken over: batch and positions."""


def full_precision(feature: Tensor) -> Tensor:
    """Return ``feature`` in float32, or unchanged if it is float64.

    In float16 a sum of squares over one P3 map overflows; bfloat16 is too coarse for a mean.
    """
    return feature if feature.dtype == torch.float64 else feature.float()


def channel_statistics(feature: Tensor, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Compute the mean and ``std + eps`` of each channel over batch and positions.

    Args:
        feature: ``N x C x H x W``.
        eps: added to the standard deviation.

    Returns:
        Mean and deviation, each ``1 x C x 1 x 1``. The standard deviation is the unbiased one; of a single value it is
        0 where ``torch.std`` returns NaN.

    >>> [tuple(part.shape) for part in channel_statistics(torch.rand(2, 8, 4, 4))]
    [(1, 8, 1, 1), (1, 8, 1, 1)]
    """
    centered, mean, count = center(feature)
    return mean, deviation(channel_sum(centered.square()), count) + eps


def standardize(feature: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Standardize each channel over batch and positions, $z(F) = (F - \mathrm{mean}) / (\mathrm{std} + \epsilon)$.

    Args:
        feature: ``N x C x H x W``.
        eps: bounds the gradient of a constant channel by ``1 / eps``.

    Returns:
        ``N x C x H x W``; zeros for a channel of a single value.

    Source: PKD (arXiv 2207.02039). Differs from the official code in ``eps``: 1e-6 there, which lets the gradient of a
    constant channel explode.

    >>> standardize(torch.full((2, 8, 4, 4), 3.0)).abs().sum()
    tensor(0.)
    """
    centered, _, count = center(feature)
    return centered * (1 / (deviation(channel_sum(centered.square()), count) + eps))


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Compute the Pearson correlation of two feature maps, averaged over channels.

    Args:
        first: ``N x C x H x W``.
        second: ``N x C x H x W``.

    Returns:
        A scalar in -1..1; constant channels count as 0.

    >>> feature = torch.rand(2, 8, 4, 4)
    >>> round(float(pearson(feature, 3 * feature - 1)), 4)
    1.0
    """
    first, second = center(first)[0], center(second)[0]
    energies = channel_sum(first.square()), channel_sum(second.square())
    return correlation(channel_sum(first * second), *energies)


def center(feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the feature minus its mean, the mean of each channel, and the number of values of a channel."""
    # Subtracting one value of the channel first makes a constant channel exactly 0. A rounding error instead would
    # correlate with others by +-1. Any value works, so it needs no gradient.
    pivot = broadcast_from_first(feature[:1, :, :1, :1])
    shifted = feature - pivot
    # summed over processes, whose images may differ in size
    count = statistics_sum(feature.new_full((), feature.numel() // feature.shape[1]))
    mean = channel_sum(shifted) / count
    return shifted - mean, pivot + mean, count


def channel_sum(feature: Tensor) -> Tensor:
    """Sum each channel over batch and positions, ``1 x C x 1 x 1``."""
    return statistics_sum(feature.sum(dim=PER_CHANNEL, keepdim=True))


def degrees_of_freedom(count: Tensor) -> Tensor:
    """Return ``count - 1``, at least 1."""
    return (count - 1).clamp_min(1)


def tiny(feature: Tensor) -> float:
    """Return the smallest normal number of a tensor's type."""
    return torch.finfo(feature.dtype).tiny


def deviation(energy: Tensor, count: Tensor) -> Tensor:
    """Return the standard deviation of channels whose centered squares sum to ``energy``."""
    # On a CPU torch.std and norms over these three dimensions run scalar code, 5 to 15 times as slow as squares and a
    # sum. The clamp keeps the gradient finite: the square root has none at 0, the value of a constant channel.
    return (energy / degrees_of_freedom(count)).clamp_min(tiny(energy)).sqrt()


def correlation(covariance: Tensor, first_energy: Tensor, second_energy: Tensor) -> Tensor:
    """Return the mean correlation of channels from their sums of products and of squares."""
    scale = first_energy.sqrt() * second_energy.sqrt()
    return torch.where(scale > 0, covariance / scale.clamp_min(tiny(scale)), 0).mean()
