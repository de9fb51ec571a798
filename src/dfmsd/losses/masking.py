"""Which positions and channels are masked: attention -> masks of zeros and ones.

A reconstruction from the abstract of DFMSD and from the lineage MGD, AMD, DMKD; see docs/concepts.md.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Selection = Literal["topk", "sample", "threshold"]
Direction = Literal["important", "unimportant", "random"]
Enhancement = Literal["none", "error", "object", "ratio", "error+object"]


def select_mask(
    attention: Tensor,
    ratio: float,
    *,
    selection: Selection = "topk",
    direction: Direction = "important",
    threshold: float = 1.0,
) -> Tensor:
    """Choose what is masked in each image.

    - ``topk``: exactly ``round(ratio * L)`` of the ``L`` entries, those with the largest attention.
    - ``sample``: as many, drawn without replacement with probability proportional to the attention
      (Gumbel top-k).
    - ``threshold``: those with attention >= ``threshold``; the share follows the scale of the features.

    Args:
        attention: ``N x 1 x H x W`` (positions) or ``N x C x 1 x 1`` (channels), > 0, mean 1 per image.
        ratio: masked share, 0..1; not used by ``threshold``.
        selection: see above.
        direction: mask what is ``important``, what is ``unimportant``, or at ``random``.
        threshold: attention from which on ``threshold`` masks.

    Returns:
        Mask of the attention's shape and type: 0 = masked, 1 = kept.

    Raises:
        ValueError: ``threshold`` together with ``random``, which has no meaning.
    """
    flat = attention.detach().flatten(1)
    if selection == "threshold":
        if direction == "random":
            raise ValueError("selection 'threshold' has no random direction; use 'topk' or 'sample'")
        masked = flat >= threshold if direction == "important" else flat < threshold
        return (~masked).to(attention.dtype).view_as(attention)
    count = math.floor(ratio * flat.shape[1] + 0.5)
    if direction == "random":
        score = torch.rand_like(flat)
    else:
        score = flat.clamp_min(torch.finfo(flat.dtype).tiny).log()
        score = score if direction == "important" else -score
        if selection == "sample":
            score = score - torch.empty_like(score).exponential_().log()  # + Gumbel noise
    mask = torch.ones_like(flat)
    return mask.scatter_(1, score.topk(count, dim=1, sorted=False).indices, 0.0).view_as(attention)


def enhance_attention(
    attention: Tensor,
    *,
    error: Tensor | None = None,
    objects: Tensor | None = None,
    gamma: float = 1.0,
    delta: float = 1.0,
) -> Tensor:
    r"""Masking enhancement: strengthen the attention where it matters.

    $A' \propto A_s (1 + \gamma\, e / \mathrm{mean}(e)) (1 + \delta\, O)$,
    renormalised to mean 1; a factor whose input is None is left out.

    Args:
        attention: ``N x 1 x H x W``, spatial attention of the teacher.
        error: ``N x 1 x H x W``, >= 0: how far the student still is from the teacher.
        objects: ``N x 1 x H x W``, 1 inside objects.
        gamma: strength of the error, >= 0.
        delta: strength of objects, >= 0.

    Source: reconstruction (the abstract: "object-aware masking regions are adaptively strengthened").
    """
    enhanced = attention
    if error is not None:
        mean = error.mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(error.dtype).tiny)
        enhanced = enhanced * (1 + gamma * error / mean)
    if objects is not None:
        enhanced = enhanced * (1 + delta * objects)
    return enhanced / enhanced.mean(dim=(1, 2, 3), keepdim=True)


def stage_ratio(ratio: float, stage: int, step: float, maximum: float) -> float:
    """Masked share of a stage: ``min(ratio + (stage - 1) * step, maximum)``, never below ``ratio``."""
    return max(ratio, min(ratio + (stage - 1) * step, maximum))
