"""Masks from attention: which positions and channels the student has to reconstruct.

Source: reconstruction from the abstract of DFMSD and from its predecessors MGD, AMD and DMKD, see docs/concepts.md.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Selection = Literal["topk", "sample", "threshold"]
Direction = Literal["important", "unimportant", "random"]


def select_mask(
    attention: Tensor,
    ratio: float,
    *,
    selection: Selection = "topk",
    direction: Direction = "important",
    threshold: float = 1.0,
) -> Tensor:
    """Choose the masked entries of each image.

    - ``topk``: exactly ``round(ratio * L)`` of the ``L`` entries, those with the highest attention.
    - ``sample``: as many, drawn without replacement with probability proportional to the attention
      (Gumbel top-k).
    - ``threshold``: those with attention >= ``threshold``; how many depends on the scale of the features.

    Args:
        attention: ``N x 1 x H x W`` (positions) or ``N x C x 1 x 1`` (channels), > 0, with mean 1 per image.
        ratio: masked share, in 0..1; ``threshold`` ignores it.
        selection: see above.
        direction: mask the ``important`` entries, the ``unimportant`` ones, or ``random`` ones.
        threshold: lowest attention that ``threshold`` masks.

    Returns:
        Mask with the attention's shape and type: 0 = masked, 1 = kept.

    Raises:
        ValueError: ``threshold`` with ``random``, which is undefined.

    >>> select_mask(torch.tensor([0.4, 1.6, 1.2, 0.8]).view(1, 1, 2, 2), ratio=0.5).flatten().tolist()
    [1.0, 0.0, 0.0, 1.0]
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
            score = score - torch.empty_like(score).exponential_().log()  # add Gumbel noise
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
    """Return a stage's masked share, ``min(ratio + (stage - 1) * step, maximum)``, never below ``ratio``.

    >>> stage_ratio(0.5, stage=4, step=0.1, maximum=0.75)
    0.75
    """
    return max(ratio, min(ratio + (stage - 1) * step, maximum))
