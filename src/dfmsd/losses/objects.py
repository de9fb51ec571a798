"""Where objects are on a feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dfmsd.losses.functional import SPATIAL


def object_cells(boxes: Sequence[Tensor], stride: float, size: tuple[int, int]) -> Tensor:
    """Mark the feature cells whose centre lies in a box.

    Args:
        boxes: per image ``M x 4``, xyxy in pixels of the *padded* input; ``M`` may be 0.
        stride: input pixels per cell.
        size: height and width of the feature map.

    Returns:
        ``N x 1 x H x W``, float32, 1 inside objects.

    Differs from the official code of FGD in dividing by the stride: there boxes are stretched in padded
    images.
    """
    padded = pad_sequence([box.reshape(-1, 4).float() for box in boxes], batch_first=True)
    x1, y1, x2, y2 = padded.unsqueeze(-1).unbind(dim=2)  # each N x M x 1; a padding row holds no cell
    rows, columns = ((torch.arange(n, device=padded.device) + 0.5) * stride for n in size)
    inside_rows = ((rows >= y1) & (rows < y2)).float()
    inside_columns = ((columns >= x1) & (columns < x2)).float()
    return (inside_rows.mT @ inside_columns).clamp_max(1.0).unsqueeze(1)


@torch.no_grad()
def object_masks(
    boxes: Sequence[Tensor], stride: int, size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Weigh the cells of objects and of background.

    A box covers the cells from ``floor(x1 / stride)`` to ``ceil(x2 / stride)``, both included, and likewise in y. Each
    gets one over the number of cells that the box covers, the largest where boxes overlap; a cell in no box gets one
    over the number of such cells in the image.

    Args:
        boxes: per image ``M x 4``, xyxy in pixels of the *padded* input; ``M`` may be 0.
        stride: input pixels per cell.
        size: height and width of the feature map.
        dtype: of the masks.

    Returns:
        Foreground and background, ``N x 1 x H x W``, 0 in each other's cells.

    Source: FGD; differs from the official code in dividing by the stride: there boxes are scaled by the size of the
    image without its padding to a map that has padding, which stretches them.
    """
    # A last row of NaN, in no cell, is there so that an image, or a batch, without boxes is no special case.
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


@torch.no_grad()
def object_focus(
    boxes: Sequence[Tensor], stride: int, size: tuple[int, int], focus: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Weigh positions so that objects count more, each as much as the others whatever its size.

    $w = 1 - f + f\, M / \mathrm{mean}(M)$ with $M$ the foreground of `object_masks`, of mean 1 in every image.

    Args:
        boxes: per image ``M x 4``, xyxy in pixels of the *padded* input; without any the weights are 1.
        stride: input pixels per cell.
        size: height and width of the feature map.
        focus: $f$, 0..1: the share of the weight that objects have to themselves.
        dtype: of the weights.

    Returns:
        ``N x 1 x H x W``.

    Source: ours.
    """
    foreground, _ = object_masks(boxes, stride, size, dtype)
    mean = foreground.mean(dim=SPATIAL, keepdim=True)
    return 1 - focus + focus * torch.where(mean > 0, foreground / mean, 1)
