"""Tiles of large images: where they lie, and how the detections in neighbors are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from dfmsd.detectors.prediction import Prediction
from dfmsd.errors import DfmsdError
from dfmsd.utils.boxes import has_area

DEFAULT_OVERLAP = 0.2
MIN_TILE = 32
SAME_FROM = 0.5
"""Lowest IoU, in the pixels that two tiles share, of boxes that are one object."""


class Tiling(NamedTuple):
    """How images are cut into tiles."""

    side: int
    """Of the square tiles, in pixels of the image."""
    overlap: float
    """Share of the side that neighbors have in common at least; from 0 to below 1."""


def read_tiling(
    tiles: object, overlap: object, names: tuple[str, str] = ("tiles", "overlap")
) -> Tiling | None:  # `object`, since it checks the types
    """Check the settings of a user.

    Args:
        tiles: Side of the tiles in pixels; None does not cut images.
        overlap: See `Tiling`; None is `DEFAULT_OVERLAP`.
        names: Names of the two settings, for messages.

    Raises:
        DfmsdError: One is out of range, or ``overlap`` is given without ``tiles``.
    """
    if tiles is None:
        if overlap is not None:
            raise DfmsdError(f"{names[1]} needs {names[0]}, the side of the tiles in pixels")
        return None
    if not isinstance(tiles, int | np.integer) or tiles < MIN_TILE:
        raise DfmsdError(f"{names[0]} must be a side in whole pixels, at least {MIN_TILE}, got {tiles!r}")
    share = DEFAULT_OVERLAP if overlap is None else overlap
    if not isinstance(share, int | float | np.number) or isinstance(share, bool) or not 0 <= share < 1:
        raise DfmsdError(f"{names[1]} must be a share of the tile from 0 to below 1, got {share!r}")
    return Tiling(int(tiles), float(share))


def place_tiles(height: int, width: int, tiling: Tiling | None) -> list[tuple[int, int, int, int]]:
    """Return the tiles of an image, row by row, xyxy in pixels: all of one size, and every pixel in at least one.

    An image that is not larger than a tile, or any without a tiling, is one tile of its own size.
    """
    if tiling is None:
        return [(0, 0, width, height)]
    high, wide = min(height, tiling.side), min(width, tiling.side)
    tops, lefts = _offsets(height, tiling), _offsets(width, tiling)
    return [(left, top, left + wide, top + high) for top in tops for left in lefts]


def _offsets(length: int, tiling: Tiling) -> list[int]:
    """Return where tiles start, evenly spread, so that the last one ends where the image does."""
    room = length - tiling.side
    if room <= 0:
        return [0]
    steps = -(-room // max(1, int(tiling.side * (1 - tiling.overlap))))
    return [room * step // steps for step in range(steps + 1)]


def join_tiles(parts: Sequence[Prediction], tiles: Sequence[tuple[int, int, int, int]], image: Tensor) -> Prediction:
    """Join the detections in the tiles of an image, best first.

    Boxes of one class in two tiles are one object if each is the other's best match in the pixels that both tiles see.
    So a part that ends at a tile's border matches the whole, and a small object inside a large one does not.
    Each side of its box comes from the tile that sees most beyond it, and its score is the best one.

    Args:
        parts: Detections in each tile, in its own pixels.
        tiles: See `place_tiles`.
        image: The whole image, uint8, ``3 x H x W``, RGB.
    """
    if len(parts) == 1:
        return parts[0]
    frames = torch.tensor(tiles, dtype=torch.float32)
    tile = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    boxes = torch.cat([part.boxes for part in parts]) + frames[tile, :2].repeat(1, 2)
    scores, labels = torch.cat([part.scores for part in parts]), torch.cat([part.labels for part in parts])
    names = [name for part in parts for name in part.class_names]
    height, width = int(image.shape[-2]), int(image.shape[-1])
    room = (boxes - frames[tile]).abs()
    room[frames[tile] == torch.tensor([0, 0, width, height])] = torch.inf  # nothing is cut at the image's own border
    kept, joined = [], []
    groups = _groups(boxes, labels, tile, frames)
    for group in sorted(set(groups.tolist())):
        members = torch.nonzero(groups == group)[:, 0]
        members = members[scores[members].argsort(descending=True, stable=True)]
        kept.append(int(members[0]))
        joined.append(_fuse(boxes[members], room[members]))
    order = scores[kept].argsort(descending=True, stable=True).tolist()
    best = [kept[index] for index in order]
    found = torch.stack([joined[index] for index in order]) if order else boxes
    return Prediction(found, scores[best], labels[best], tuple(names[one] for one in best), (height, width), image)


def _groups(boxes: Tensor, labels: Tensor, tile: Tensor, frames: Tensor) -> Tensor:
    """Return a number for each box, equal for those of one object."""
    groups = torch.arange(len(boxes))
    shared = torch.cat(
        [torch.maximum(frames[:, None, :2], frames[:, :2]), torch.minimum(frames[:, None, 2:], frames[:, 2:])], dim=2
    )
    filled = torch.bincount(tile, minlength=len(frames)) > 0
    meeting = (shared[..., 2:] > shared[..., :2]).all(dim=2) & filled & filled[:, None]
    for one, other in meeting.triu(diagonal=1).nonzero().tolist():
        first, second = (torch.nonzero(tile == index)[:, 0] for index in (one, other))
        window = shared[one, other]
        seen = box_iou(_clip(boxes[first], window), _clip(boxes[second], window)).nan_to_num()  # 0 / 0 if both outside
        overlap = torch.where(labels[first, None] == labels[second], seen, 0)
        for row, column in _best_pairs(overlap):
            groups[groups == groups[second[column]]] = groups[first[row]].clone()
    return groups


def _clip(boxes: Tensor, window: Tensor) -> Tensor:
    low, high = window[:2].repeat(2), window[2:].repeat(2)
    return torch.minimum(torch.maximum(boxes, low), high)


def _best_pairs(overlap: Tensor) -> list[tuple[int, int]]:
    """Return the rows and columns that are each other's best match, from `SAME_FROM` on."""
    values, columns = overlap.max(dim=1)
    rows = overlap.argmax(dim=0)
    return [
        (row, column)
        for row, (value, column) in enumerate(zip(values.tolist(), columns.tolist(), strict=True))
        if value >= SAME_FROM and int(rows[column]) == row
    ]


def _fuse(boxes: Tensor, room: Tensor) -> Tensor:
    """Return one box whose sides are those with the most room to the border of their tile; at a tie, the first's."""
    sides = torch.from_numpy(room.numpy().argmax(axis=0))  # torch's argmax may return any of several
    box = boxes.gather(0, sides[None])
    return box[0] if bool(has_area(box)) else boxes[0]
