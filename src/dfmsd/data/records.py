"""Image records of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class ImageRecord(NamedTuple):
    """One image and its annotations."""

    id: int
    path: Path
    height: int
    width: int
    boxes: Tensor
    """float32, ``M x 4``, xyxy in original pixels, clipped to the image; without crowds and boxes of zero area."""
    labels: Tensor
    """int64, ``M``, indices into the class names."""
    labeled: bool = True
    """Whether the image has been annotated; a labeled image may still contain no objects."""
