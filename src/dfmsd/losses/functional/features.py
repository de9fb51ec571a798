"""FitNet, PKD, MGD and AMD as functions of two feature maps.

The student's feature is already aligned with the teacher's: same channels, same size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.losses.functional.alignment import align_distributions
from dfmsd.losses.functional.statistics import standardize

Layers = Callable[[Tensor], Tensor]
"""A module, or any function, that maps one feature map to another."""


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean squared error of the features, $\mathrm{mean}(X - T)^2$.

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``.

    Source: FitNets (arXiv 1412.6550).

    >>> fitnet(torch.zeros(2, 8, 4, 4), torch.full((2, 8, 4, 4), 3.0))
    tensor(9.)
    """
    return F.mse_loss(student, teacher)


def pkd(student: Tensor, teacher: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Compute one minus the Pearson correlation, averaged over channels.

    $\frac12 \mathrm{mean}(z(X) - z(T))^2$ with $z$ of `standardize`; about 0 to 2.

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``; gets no gradient.
        eps: added to the standard deviation.

    Source: PKD (arXiv 2207.02039, mmrazor ``PKDLoss``). Differs from the official code in ``eps``: 1e-6 there, which
    lets the gradient of a constant channel explode.

    >>> teacher = torch.rand(2, 8, 4, 4)
    >>> float(pkd(5 * teacher - 1, teacher)) < 1e-3  # scale and shift do not matter
    True
    """
    return align_distributions(student, standardize(teacher, eps), eps).error


def random_mask(feature: Tensor, ratio: float) -> Tensor:
    """Draw a mask over the positions, shared by all channels.

    Args:
        feature: ``N x C x H x W``.
        ratio: probability that a position is masked, in 0..1.

    Returns:
        ``N x 1 x H x W``: 0 = masked, 1 = kept.

    >>> random_mask(torch.rand(2, 8, 4, 4), 1.0).sum()
    tensor(0.)
    """
    return (torch.rand_like(feature[:, :1]) >= ratio).to(feature.dtype)


def mgd(student: Tensor, teacher: Tensor, mask: Tensor, generation: Layers) -> Tensor:
    r"""Compute the squared error of the feature generated from a masked student.

    $\frac1N \sum_{n,c,i,j} (G(X \cdot M) - T)^2$, over all positions, masked or not.

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``.
        mask: ``N x 1 x H x W``, see `random_mask`.
        generation: $G$, such as `dfmsd.losses.generation.GenerationBlock`.

    Source: MGD (arXiv 2205.01529, yzd-v/MGD).

    >>> ones, mask = torch.ones(2, 8, 4, 4), torch.zeros(2, 1, 4, 4)
    >>> mgd(ones, ones, mask, torch.nn.Identity())  # everything is masked: 8 * 4 * 4 errors of 1
    tensor(128.)
    """
    return F.mse_loss(generation(student * mask), teacher, reduction="sum") / len(student)


def amd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    generation: Layers,
    gate: Layers | None = None,
) -> Tensor:
    r"""Compute the squared error of the generated feature, whose channels the teacher gates.

    $\frac1N \sum_{n,c,i,j} (G(X \cdot M) \cdot g(T) - T)^2$

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``.
        mask: ``N x 1 x H x W``, 0 = masked, see `threshold_mask`.
        generation: $G$, such as `dfmsd.losses.generation.GenerationBlock`.
        gate: $g$, ``N x C x H x W`` -> ``N x C x 1 x 1``; None for no gate.

    Source: reconstruction of AMD (arXiv 2301.13538) from its abstract.

    >>> ones, mask = torch.ones(2, 8, 4, 4), torch.ones(2, 1, 4, 4)
    >>> amd(ones, ones, mask, torch.nn.Identity(), gate=lambda teacher: torch.full((2, 8, 1, 1), 0.5))
    tensor(32.)
    """
    generated = generation(student * mask)
    if gate is not None:
        generated = generated * gate(teacher)
    return F.mse_loss(generated, teacher, reduction="sum") / len(student)
