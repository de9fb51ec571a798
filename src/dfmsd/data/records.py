"""Image records of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area

from dfmsd.data.transforms import fitted_size
from dfmsd.types import Target


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
    """Whether the image has boxes to train on, its own or pseudo-labels; one with its own may contain no objects."""

    scores: Tensor | None = None
    """float32, ``M``, in 0..1: those of soft pseudo-labels."""

    @property
    def target(self) -> Target:
        """The boxes in original pixels, with their labels and scores."""
        target = Target(boxes=self.boxes, labels=self.labels)
        return target if self.scores is None else {**target, "scores": self.scores}


def box_sizes(records: Iterable[ImageRecord], image_size: int) -> Tensor:
    """Return the square root of the area of every box, in pixels of the resized images.

    Args:
        records: Images.
        image_size: Longer side that images are resized to.
    """
    sizes = [torch.zeros(0)]
    for record in records:
        height, width = fitted_size(record.height, record.width, image_size)
        scale = height * width / (record.height * record.width)
        sizes.append((scale * box_area(record.boxes)).sqrt())
    return torch.cat(sizes)
