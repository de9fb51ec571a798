"""The two terms of DFMSD as functions of two feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.losses.functional.alignment import align_distributions
from dfmsd.losses.functional.statistics import standardize


def dfmsd_mask(
    student: Tensor,
    target: Tensor,
    masks: Sequence[Tensor],
    generation: Sequence[Callable[[Tensor], Tensor]],
    weight: Tensor | None = None,
) -> Tensor:
    r"""Compute the mean squared error of the feature generated from a masked student.

    $\mathrm{mean}(R - target)^2$ with $R = w\, G_1(X \cdot M_1) + (1 - w)\, G_2(X \cdot M_2)$, or
    $R = G_1(X \cdot M_1)$ with one branch.

    Args:
        student: ``N x C x H x W``.
        target: ``N x C x H x W``, such as the standardized feature of the teacher.
        masks: one or two; ``N x 1 x H x W`` masks positions and ``N x C x 1 x 1`` channels, 0 = masked.
        generation: one for each mask, such as `dfmsd.losses.generation.GenerationBlock`.
        weight: $w$, a scalar; for two masks only.

    Source: reconstruction of DFMSD (arXiv 2407.13147) and DMKD (arXiv 2309.02719) from their abstracts.

    >>> student, masks = torch.ones(2, 8, 4, 4), [torch.zeros(2, 1, 4, 4), torch.ones(2, 8, 1, 1)]
    >>> dfmsd_mask(student, student, masks, [torch.nn.Identity()] * 2, torch.tensor(0.5))
    tensor(0.2500)
    """
    generated = [block(student * mask) for mask, block in zip(masks, generation, strict=True)]
    if weight is None:
        (blended,) = generated
    else:
        first, second = generated
        blended = torch.lerp(second, first, weight)
    return F.mse_loss(blended, target)


def dfmsd_alignment(student: Tensor, teacher: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Compute the semantic alignment, $\frac12 \mathrm{mean} (z(X) - z(T))^2$ with $z$ of `standardize`.

    Args:
        student: ``N x C x H x W``; not masked.
        teacher: ``N x C x H x W``; gets no gradient.
        eps: added to the standard deviation.

    Source: reconstruction of DFMSD (arXiv 2407.13147) from its abstract; the formula is PKD's.

    >>> teacher = torch.rand(2, 8, 4, 4)
    >>> dfmsd_alignment(teacher, teacher)
    tensor(0.)
    """
    return align_distributions(student, standardize(teacher, eps), eps).error
