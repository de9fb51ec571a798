"""Non-maximum suppression of a whole batch, at shapes that depend on no result, of operators that exporters know."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

ASIDE = ((-2.0, -2.0, -1.0, -1.0), (-4.0, -4.0, -3.0, -3.0))
"""Boxes that meet no other: torch.export takes for granted that a suppression leaves two."""


def nms_scores(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int, side: float) -> Tensor:
    """Give the scores, with 0 where a better box of the same image and group overlaps.

    All images go through one suppression, each group of each image on a tile of its own: the groups fill a square, the
    images lie below each other. So coordinates stay small, and float32 rounds them less than torchvision's
    ``batched_nms``, which lays all tiles in a row.

    Args:
        boxes: ``N x M x 4``, xyxy in pixels, within 0..``side``.
        scores: ``N x M``; 0 where there is no box.
        groups: int64, ``N x M``, in 0..``count - 1``.
        threshold: IoU above which the worse box goes.
        count: number of groups.
        side: of a tile, in pixels.
    """
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    image = torch.arange(scores.shape[0], device=scores.device).unsqueeze(1)
    corners = torch.stack([groups % columns, image * rows + groups // columns], dim=2) * (side + 1.0)
    tiled = torch.cat([(boxes + corners.repeat(1, 1, 2)).flatten(0, 1), boxes.new_tensor(ASIDE)])
    flat = F.pad(scores.flatten(), (0, len(ASIDE)), value=1.0)
    (place,) = torch.where(flat > 0)
    kept = place[nms(tiled[place], flat[place], threshold)]
    return torch.zeros_like(flat).index_put((kept,), flat[kept])[: -len(ASIDE)].view_as(scores)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Give ``N x K x E`` of values ``N x M x E`` by an index ``N x K``."""
    return values.gather(1, index.unsqueeze(2).expand(-1, -1, values.shape[2]))
