"""How well boxes agree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-6
"""Lower end of areas that are divided by, as in the official code of GFL and CrossKD."""


class Overlap(NamedTuple):
    """How well boxes agree, in any broadcast shape; boxes without area overlap nothing."""

    iou: Tensor
    """0..1."""
    generalized: Tensor
    """-1..1: minus what the hull of both has beside the two, relative to it."""


def overlaps(first: Tensor, second: Tensor) -> Overlap:
    """Compare boxes ``... x 4``, xyxy, pair by pair."""
    x1, y1, x2, y2 = first.unbind(-1)
    u1, v1, u2, v2 = second.unbind(-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    common = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - common
    hull = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) * (torch.maximum(y2, v2) - torch.minimum(y1, v1))
    iou = common / union.clamp(min=EPS)
    return Overlap(iou, iou - (hull - union) / hull.clamp(min=EPS))
