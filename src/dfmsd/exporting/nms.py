"""Batched non-maximum suppression with fixed output shapes, using only operators that exporters support."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

DUMMY_BOXES = ((-2.0, -2.0, -1.0, -1.0), (-4.0, -4.0, -3.0, -3.0))
"""Boxes that overlap no other: torch.export assumes that at least two boxes survive."""


def nms_scores(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int, side: float) -> Tensor:
    """Return the scores with 0 for suppressed boxes.

    All images share one call: each group of each image gets its own tile, with the groups in a square and the images
    below each other. Coordinates stay smaller than in torchvision's ``batched_nms``, which places all tiles on the
    diagonal, so float32 rounds them less.

    Args:
        boxes: ``N x M x 4``, xyxy in pixels, within 0..``side``.
        scores: ``N x M``; 0 for missing boxes.
        groups: int64, ``N x M``, in 0..``count - 1``; only boxes of the same group suppress each other.
        threshold: IoU above which the box with the lower score is suppressed.
        count: number of groups.
        side: of a tile, in pixels.
    """
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    image = torch.arange(scores.shape[0], device=scores.device).unsqueeze(1)
    corners = torch.stack([groups % columns, image * rows + groups // columns], dim=2) * (side + 1.0)
    tiled = torch.cat([(boxes + corners.repeat(1, 1, 2)).flatten(0, 1), boxes.new_tensor(DUMMY_BOXES)])
    flat = F.pad(scores.flatten(), (0, len(DUMMY_BOXES)), value=1.0)
    (index,) = torch.where(flat > 0)
    kept = index[nms(tiled[index], flat[index], threshold)]
    return torch.zeros_like(flat).index_put((kept,), flat[kept])[: -len(DUMMY_BOXES)].view_as(scores)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Select rows of ``N x M x E`` by an index ``N x K``; returns ``N x K x E``."""
    return values.gather(1, index.unsqueeze(2).expand(-1, -1, values.shape[2]))
