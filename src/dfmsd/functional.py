"""Attention, standardisation and correlation of feature maps: pure functions, no state.

Everything here expects the caller to have left autocast: use [`full_precision`][dfmsd.functional.full_precision] first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPATIAL = (2, 3)
PER_CHANNEL = (0, 2, 3)


def full_precision(feature: Tensor) -> Tensor:
    """Give ``feature`` in float32, or as it is in float64.

    Half precision overflows in a sum of squares over one P3 map and loses the mean in bfloat16.
    """
    return feature if feature.dtype == torch.float64 else feature.float()


def spatial_attention(feature: Tensor, tau: float = 0.5) -> Tensor:
    r"""Where a feature map is strong.

    $A_s[n,1,i,j] = H W \cdot \mathrm{softmax}_{ij}(\mathrm{mean}_c |F[n,c,i,j]| / \tau)$

    Args:
        feature: ``N x C x H x W``.
        tau: temperature, > 0; smaller is more peaked.

    Returns:
        ``N x 1 x H x W``, mean 1 over the positions of each image.

    Source: the attention of FGD (yzd-v/FGD), which the masked line of methods took over.
    """
    n, _, height, width = feature.shape
    energy = feature.abs().mean(dim=1).flatten(1)
    return (height * width * (energy / tau).softmax(dim=1)).view(n, 1, height, width)


def channel_attention(feature: Tensor, tau: float = 0.5) -> Tensor:
    r"""Which channels of a feature map are strong.

    $A_c[n,c,1,1] = C \cdot \mathrm{softmax}_c(\mathrm{mean}_{ij} |F[n,c,i,j]| / \tau)$

    Args:
        feature: ``N x C x H x W``.
        tau: temperature, > 0; smaller is more peaked.

    Returns:
        ``N x C x 1 x 1``, mean 1 over the channels of each image.

    Source: the attention of FGD (yzd-v/FGD).
    """
    energy = feature.abs().mean(dim=SPATIAL, keepdim=True)
    return feature.shape[1] * (energy / tau).softmax(dim=1)


def channel_statistics(feature: Tensor, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Mean and ``std + eps`` of each channel over batch and positions, both ``1 x C x 1 x 1``.

    The standard deviation is the unbiased one; of a single value it is 0 (torch would give NaN).
    """
    return feature.mean(dim=PER_CHANNEL, keepdim=True), _deviation(_centred(feature)) + eps


def standardize(feature: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Take scale and shift out of each channel.

    $z(F) = (F - \mathrm{mean}) / (\mathrm{std} + \epsilon)$, per channel over batch and positions.

    Args:
        feature: ``N x C x H x W``.
        eps: bounds the gradient of dead channels by ``1 / eps``.

    Returns:
        ``N x C x H x W``; zeros for a single value per channel.

    Source: PKD; differs from the official code in ``eps`` (1e-6 there), which lets dead channels
    explode.
    """
    centred = _centred(feature)
    return centred / (_deviation(centred) + eps)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Mean over channels of the correlation between two feature maps: a scalar in -1..1.

    Channels without any variation count as 0.

    Args:
        first: ``N x C x H x W``.
        second: ``N x C x H x W``.
    """
    first, second = _centred(first), _centred(second)
    covariance = (first * second).sum(dim=PER_CHANNEL)
    scale = first.square().sum(dim=PER_CHANNEL) * second.square().sum(dim=PER_CHANNEL)
    return (covariance / scale.sqrt().clamp_min(torch.finfo(scale.dtype).tiny)).mean()


def _centred(feature: Tensor) -> Tensor:
    # From a value of the channel first: a constant then is exactly 0, not a rounding error that correlates with +-1.
    # Any value will do, so none needs a gradient.
    shifted = feature - feature[:1, :, :1, :1].detach()
    return shifted - shifted.mean(dim=PER_CHANNEL, keepdim=True)


def _deviation(centred: Tensor) -> Tensor:
    # A norm, since torch.std over these three dimensions is scalar code, several times as slow on a CPU, and since
    # the square root of a sum has no gradient at 0, a dead channel.
    norm: Tensor = torch.linalg.vector_norm(centred, dim=PER_CHANNEL, keepdim=True)
    return norm / math.sqrt(max(centred.numel() // centred.shape[1] - 1, 1))


def alignment_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Distance of two standardised feature maps.

    $\frac12 \mathrm{mean}(z_S - z_T)^2 = \mathrm{mean}_c (1 - \mathrm{pearson}_c)$, up to
    $(n-1)/n$ and ``eps``.

    Args:
        student: standardised, ``N x C x H x W``.
        teacher: standardised, ``N x C x H x W``.

    Returns:
        A scalar in about 0..2.

    Source: the semantic alignment of DFMSD is a reconstruction from its abstract ("consistent feature
    distributions" at each FPN layer); the formula is PKD's.
    """
    return torch.nn.functional.mse_loss(student, teacher) / 2
