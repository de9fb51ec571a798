"""Ground-truth boxes as maps over the cells of a feature level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dfmsd.losses.functional.attention import SPATIAL


def object_cells(boxes: Sequence[Tensor], stride: float, size: tuple[int, int]) -> Tensor:
    """Mark the cells whose center lies in a box.

    Args:
        boxes: per image ``M x 4``, xyxy in pixels of the *padded* input; ``M`` may be 0.
        stride: input pixels per cell.
        size: height and width of the feature map.

    Returns:
        ``N x 1 x H x W``, float32, 1 inside objects.

    >>> object_cells([torch.tensor([[0.0, 0.0, 8.0, 16.0]])], stride=8, size=(2, 3)).flatten().tolist()
    [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    """
    padded = pad_sequence([box.reshape(-1, 4).float() for box in boxes], batch_first=True)
    x1, y1, x2, y2 = padded.unsqueeze(-1).unbind(dim=2)  # each N x M x 1; a padding row contains no cell
    rows, columns = ((torch.arange(n, device=padded.device) + 0.5) * stride for n in size)
    inside_rows = ((rows >= y1) & (rows < y2)).float()
    inside_columns = ((columns >= x1) & (columns < x2)).float()
    return (inside_rows.mT @ inside_columns).clamp_max(1.0).unsqueeze(1)


@torch.no_grad()
def object_masks(
    boxes: Sequence[Tensor], stride: float, size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Weight the cells of objects and of the background.

    A box covers the cells from ``floor(x1 / stride)`` to ``ceil(x2 / stride)``, both included, and likewise in y. Each
    cell gets one over the number of cells that its box covers, the largest value where boxes overlap. A cell in no box
    gets one over the number of such cells in the image.

    Args:
        boxes: per image ``M x 4``, xyxy in pixels of the *padded* input; ``M`` may be 0.
        stride: input pixels per cell.
        size: height and width of the feature map.
        dtype: of the masks.

    Returns:
        Foreground and background, each ``N x 1 x H x W`` and 0 in the cells of the other.

    Source: FGD (yzd-v/FGD). Differs from the official code, which divides boxes by the size of the unpadded image and
    so stretches them on the padded feature map.

    >>> foreground, background = object_masks([torch.tensor([[0.0, 0.0, 4.0, 4.0]])], stride=8, size=(2, 3))
    >>> foreground.flatten().tolist()
    [0.25, 0.25, 0.0, 0.25, 0.25, 0.0]
    >>> background.flatten().tolist()
    [0.0, 0.0, 0.5, 0.0, 0.0, 0.5]
    """
    # A last row of NaN, which covers no cell, spares a special case for images, or a batch, without boxes.
    rows = [F.pad(box.reshape(-1, 4).to(dtype), (0, 0, 0, 1), value=torch.nan) for box in boxes]
    cells = pad_sequence(rows, batch_first=True, padding_value=torch.nan).div(stride).unsqueeze(-1)
    first, last = cells[:, :, :2].floor(), cells[:, :, 2:].ceil()  # N x M x 2 x 1
    value = 1 / (last - first + 1).prod(dim=2)
    (x1, y1), (x2, y2) = first.unbind(2), last.unbind(2)
    row, column = (torch.arange(n, device=cells.device) for n in size)
    weights = torch.where((row >= y1) & (row <= y2), value, 0)
    inside = ((column >= x1) & (column <= x2)).to(dtype)
    foreground = (weights.unsqueeze(3) * inside.unsqueeze(2)).amax(dim=1, keepdim=True)
    background = (foreground == 0).to(dtype)
    return foreground, background / background.sum(dim=SPATIAL, keepdim=True).clamp_min(1)
