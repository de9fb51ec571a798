"""Boxes that are unlikely to be meant, or too small to be found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

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
    columns, owners = split.records.columns, split.records.owners
    sides = columns.boxes[:, 2:] - columns.boxes[:, :2]
    areas = columns.sizes.astype(np.int64).prod(axis=1)[owners]
    short, long = sides.min(axis=1), sides.max(axis=1)
    tests = {
        "cover the whole image: a label of the image, perhaps": sides.prod(axis=1) > WHOLE * areas,
        f"are more than {RATIO:.0f} times as long as wide": long / short > RATIO,
        f"are less than {TINY} pixels wide or high": short < TINY,
    }
    for description, found in tests.items():
        if found.any():
            first = split.records[owners[found.argmax()]].path.name
            yield f"{split.file}: {found.sum()} of {len(sides)} boxes {description}, the first in {first}"
