"""Masks from attention: which positions and channels the student has to reconstruct.

Source: reconstruction from the abstract of DFMSD and from its predecessors MGD, AMD and DMKD, see docs/concepts.md.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["important", "unimportant", "random"]


def select_mask(attention: Tensor, ratio: float, *, direction: Direction = "important") -> Tensor:
    """Mask exactly ``round(ratio * L)`` of the ``L`` entries of each image.

    Args:
        attention: ``N x 1 x H x W`` (positions) or ``N x C x 1 x 1`` (channels), >= 0.
        ratio: fraction of the entries to mask, in 0..1.
        direction: mask the ``important`` entries, those with the highest attention, the ``unimportant`` ones, or
            ``random`` ones.

    Returns:
        Mask with the attention's shape and type: 0 = masked, 1 = kept.

    >>> select_mask(torch.tensor([0.4, 1.6, 1.2, 0.8]).view(1, 1, 2, 2), ratio=0.5).flatten().tolist()
    [1.0, 0.0, 0.0, 1.0]
    """
    flat = attention.detach().flatten(1)
    count = math.floor(ratio * flat.shape[1] + 0.5)
    score = torch.rand_like(flat) if direction == "random" else flat
    masked = score.topk(count, dim=1, largest=direction != "unimportant", sorted=False).indices
    return torch.ones_like(flat).scatter_(1, masked, 0.0).view_as(attention)


def threshold_mask(attention: Tensor, threshold: float) -> Tensor:
    """Mask the entries whose attention reaches a threshold; how many depends on the scale of the features.

    Args:
        attention: ``N x 1 x H x W``, >= 0, with mean 1 per image.
        threshold: lowest attention that is masked.

    Returns:
        Mask with the attention's shape and type: 0 = masked, 1 = kept.

    >>> threshold_mask(torch.tensor([0.4, 1.6, 1.2, 0.8]).view(1, 1, 2, 2), 1.0).flatten().tolist()
    [1.0, 0.0, 0.0, 1.0]
    """
    return (attention.detach() < threshold).to(attention.dtype)


def enhance_attention(
    attention: Tensor,
    *,
    error: Tensor | None = None,
    objects: Tensor | None = None,
    gamma: float = 1.0,
    delta: float = 1.0,
) -> Tensor:
    r"""Raise the spatial attention where the student still fails and where objects are.

    $A' \propto A_s (1 + \gamma\, e / \mathrm{mean}(e)) (1 + \delta\, O)$, normalized to mean 1. A factor whose input is
    None is left out.

    Args:
        attention: ``N x 1 x H x W``, spatial attention of the teacher.
        error: $e$, ``N x 1 x H x W``, >= 0: the student's distance from the teacher.
        objects: $O$, ``N x 1 x H x W``, 1 inside objects.
        gamma: strength of the error, >= 0.
        delta: strength of objects, >= 0.

    Returns:
        ``N x 1 x H x W``, with mean 1 per image.

    Source: reconstruction of masking enhancement (the abstract of DFMSD: "object-aware masking regions are adaptively
    strengthened").

    >>> attention, objects = torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    >>> enhance_attention(attention, objects=objects, delta=2.0).flatten().tolist()
    [1.5, 0.5]
    """
    enhanced = attention
    if error is not None:
        mean = error.mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(error.dtype).tiny)
        enhanced = enhanced * (1 + gamma * error / mean)
    if objects is not None:
        enhanced = enhanced * (1 + delta * objects)
    return enhanced / enhanced.mean(dim=(1, 2, 3), keepdim=True)


def stage_ratio(ratio: float, stage: int, step: float, maximum: float) -> float:
    """Return the masked fraction of a stage, ``min(ratio + (stage - 1) * step, maximum)``, never below ``ratio``.

    >>> stage_ratio(0.5, stage=4, step=0.1, maximum=0.75)
    0.75
    """
    return max(ratio, min(ratio + (stage - 1) * step, maximum))
