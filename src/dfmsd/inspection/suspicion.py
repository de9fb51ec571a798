"""Boxes that are unlikely to be meant, or too small to be found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torchvision.ops import box_area

from dfmsd.data.split import DetectionSplit

SMALL = 8
"""Side in pixels of the resized image: one cell of the finest level of most students."""
SMALL_SHARE = 0.1
"""Share of small objects from which on they are mentioned."""
WHOLE = 0.95
"""Share of the image's area from which on a box covers all of it."""
RATIO = 20.0
"""Of the longer to the shorter side of an unlikely box."""
TINY = 2
"""Shortest side of a box in pixels of the image file, below which it marks nothing."""
FEW = 10
"""Objects of a class below which nothing can be learned, or measured."""


def suspicious_boxes(split: DetectionSplit, sizes: Tensor, image_size: int) -> Iterator[str]:
    """Say which boxes are unlikely to be meant, and which will hardly be found.

    Args:
        split: The split.
        sizes: Square root of the area of each object, in pixels of the resized image.
        image_size: Longer side that images are resized to.
    """
    yield from _unlikely(split)
    small = int((sizes < SMALL).sum())
    if small > SMALL_SHARE * len(sizes):
        yield (
            f"{split.file}: {small} of {len(sizes)} objects are smaller than {SMALL} pixels in images of "
            f"{image_size}: they will hardly be found; choose a larger image_size"
        )


def rare_classes(split: DetectionSplit, name: str, objects: Mapping[str, int]) -> Iterator[str]:
    """Say which classes have too few objects.

    Args:
        split: The split.
        name: Its name.
        objects: Class -> number of objects.
    """
    rare = [f"{cls} ({count})" for cls, count in objects.items() if 0 < count < FEW]
    if rare:
        yield f"{split.file}: fewer than {FEW} objects of {', '.join(rare)} in {name}: AP of such a class says little"


def _unlikely(split: DetectionSplit) -> Iterator[str]:
    whole = ("cover the whole image: a label of the image, perhaps", lambda box, area: box_area(box) > WHOLE * area)
    thin = (f"are more than {RATIO:.0f} times as long as wide", lambda box, _: _ratio(box) > RATIO)
    tiny = (f"are less than {TINY} pixels wide or high", lambda box, _: _sides(box).amin(dim=1) < TINY)
    boxes = sum(len(record.boxes) for record in split.records)
    for description, test in (whole, thin, tiny):
        counts = [int(test(record.boxes, record.height * record.width).sum()) for record in split.records]
        if any(counts):
            first = next(record for record, count in zip(split.records, counts, strict=True) if count)
            yield f"{split.file}: {sum(counts)} of {boxes} boxes {description}, the first in {first.path.name}"


def _ratio(boxes: Tensor) -> Tensor:
    sides = _sides(boxes)
    return sides.amax(dim=1) / sides.amin(dim=1)


def _sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]
