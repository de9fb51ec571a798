"""Spatial and channel attention of feature maps."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dfmsd.losses.functional.statistics import tiny

SPATIAL = (2, 3)
"""Dimensions of the positions."""


class Attention(NamedTuple):
    """Attention of a feature map over positions and over channels."""

    spatial: Tensor
    """``N x 1 x H x W``, see `spatial_attention`."""
    channel: Tensor
    """``N x C x 1 x 1``, see `channel_attention`."""


def feature_attention(feature: Tensor, tau: float = 0.5) -> Attention:
    """Compute both attentions of a feature map.

    Args:
        feature: ``N x C x H x W``.
        tau: temperature, > 0.

    >>> import torch
    >>> [tuple(part.shape) for part in feature_attention(torch.rand(2, 8, 4, 5))]
    [(2, 1, 4, 5), (2, 8, 1, 1)]
    """
    return Attention(spatial_attention(feature, tau), channel_attention(feature, tau))


def spatial_attention(feature: Tensor, tau: float = 0.5) -> Tensor:
    r"""Compute the attention over positions.

    $A_s[n,1,i,j] = H W \cdot \mathrm{softmax}_{ij}(\mathrm{mean}_c |F[n,c,i,j]| / \tau)$

    Args:
        feature: ``N x C x H x W``.
        tau: temperature, > 0; smaller values give sharper peaks.

    Returns:
        ``N x 1 x H x W``, with mean 1 over the positions of each image.

    Source: FGD (yzd-v/FGD).

    >>> import torch
    >>> spatial_attention(torch.ones(1, 8, 2, 2)).flatten().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    n, _, height, width = feature.shape
    energy = feature.abs().mean(dim=1).flatten(1)
    return (height * width * (energy / tau).softmax(dim=1)).view(n, 1, height, width)


def channel_attention(feature: Tensor, tau: float = 0.5) -> Tensor:
    r"""Compute the attention over channels.

    $A_c[n,c,1,1] = C \cdot \mathrm{softmax}_c(\mathrm{mean}_{ij} |F[n,c,i,j]| / \tau)$

    Args:
        feature: ``N x C x H x W``.
        tau: temperature, > 0; smaller values give sharper peaks.

    Returns:
        ``N x C x 1 x 1``, with mean 1 over the channels of each image.

    Source: FGD (yzd-v/FGD).

    >>> import torch
    >>> channel_attention(torch.rand(2, 8, 4, 5)).shape
    torch.Size([2, 8, 1, 1])
    """
    energy = feature.abs().mean(dim=SPATIAL, keepdim=True)
    return feature.shape[1] * (energy / tau).softmax(dim=1)


def per_magnitude(feature: Tensor) -> Tensor:
    r"""Divide a feature by the mean of $|F|$ over each image.

    Magnitudes differ by a factor of 20 to 40 between frameworks. Undivided, those of a large feature would make its
    attention so sharp that `enhance_attention` could not reorder it.

    Args:
        feature: ``N x C x H x W``.

    >>> import torch
    >>> per_magnitude(torch.tensor([[[[3.0, -9.0]]]]))
    tensor([[[[ 0.5000, -1.5000]]]])
    """
    magnitude = feature.abs().mean(dim=(1, 2, 3), keepdim=True)
    return feature / magnitude.clamp_min(tiny(feature))
