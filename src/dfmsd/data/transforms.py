"""Geometry of images and boxes: resize, augmentation, padding into a batch.

The content of an image always sits in the top left corner of its padded frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dfmsd.types import Batch, Target

STRIDE = 32
"""Padded sizes are multiples of this, the coarsest stride of common backbones."""


class Sample(NamedTuple):
    """One image of a batch, not padded yet."""

    image: Tensor
    """uint8, ``3 x H x W``, RGB."""
    target: Target
    """In pixels of ``image``."""
    scale: tuple[float, float]
    """Pixels of ``image`` per original pixel, vertical and horizontal."""
    image_id: int
    digest: str | None = None
    """Key of the pixels for caches, if it was asked for; None for geometry that hardly ever comes again."""
    labeled: bool = True
    """False where nobody has looked for objects."""


def fit(image: Tensor, target: Target, image_size: int, image_id: int = 0) -> Sample:
    """Resize so that the longer side is ``image_size``; the aspect is kept.

    Args:
        image: uint8, ``3 x H x W``.
        target: Boxes in pixels of ``image``.
        image_size: Longer side of the result, in pixels.
        image_id: Carried along.
    """
    height, width = image.shape[-2:]
    return _resize(Sample(image, target, (1.0, 1.0), image_id), fitted_size(height, width, image_size))


def fitted_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Give the height and width that `fit` resizes to."""
    longer = max(height, width)
    return max(1, round(height * image_size / longer)), max(1, round(width * image_size / longer))


def pixel_digest(image: Tensor) -> str:
    """Hash shape and pixels of a uint8 image."""
    content = hashlib.blake2b(str(tuple(image.shape)).encode(), digest_size=16)
    content.update(image.contiguous().numpy().data)
    return content.hexdigest()


def hflip(sample: Sample) -> Sample:
    """Mirror the content left to right within its own, unpadded width."""
    boxes = F.horizontal_flip(_boxes(sample))
    digest = None if sample.digest is None else f"{sample.digest}-flip"
    return sample._replace(
        image=F.horizontal_flip(sample.image), target=_with_boxes(sample.target, boxes), digest=digest
    )


def random_rescale(sample: Sample, factor: float, frame: int, rng: np.random.Generator) -> Sample:
    """Scale the content by ``factor`` and cut a random window of at most ``frame x frame`` pixels; there is no digest.

    Boxes are clipped to the window; those left with a side below 1 pixel are dropped. The offset of the window is not
    recorded: detections in such an image cannot be mapped back to the original.
    """
    height, width = sample.image.shape[-2:]
    sample = _resize(sample, (max(1, round(height * factor)), max(1, round(width * factor))))
    height, width = sample.image.shape[-2:]
    size = min(height, frame), min(width, frame)
    top, left = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
    boxes = F.crop(_boxes(sample), top, left, *size)
    boxes, keep = F.sanitize_bounding_boxes(boxes, min_size=1.0)
    target = Target(boxes=boxes.as_subclass(Tensor), labels=sample.target["labels"][keep])
    return sample._replace(image=F.crop(sample.image, top, left, *size), target=target)


@dataclass(frozen=True)
class Augmentation:
    """Random geometry of a training sample: rescaling, then a horizontal flip.

    Attributes:
        image_size: Side of the frame, in pixels.
        flip: Probability of a horizontal flip, 0..1.
        scale_jitter: Lowest and highest factor of the content's size, or none.
    """

    image_size: int
    flip: float = 0.5
    scale_jitter: tuple[float, float] | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Augment one sample; every draw comes from ``rng``."""
        if self.scale_jitter is not None:
            sample = random_rescale(sample, rng.uniform(*self.scale_jitter), self.image_size, rng)
        return hflip(sample) if rng.random() < self.flip else sample


def collate(samples: Sequence[Sample], image_size: int | None = None) -> Batch:
    """Pad samples at the right and the bottom with black, and stack them.

    Args:
        samples: At least one; those without annotations last.
        image_size: Side of the square frame in pixels; none = the largest height and width among the samples, rounded
            up to a multiple of 32.
    """
    sizes = [(int(sample.image.shape[-2]), int(sample.image.shape[-1])) for sample in samples]
    height, width = (image_size or -(-max(side) // STRIDE) * STRIDE for side in zip(*sizes, strict=True))
    # bytes, in the order in which images are decoded: filling them is one plain copy, and they are converted at once
    shape = (len(samples), 3, height, width)
    frames = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last).zero_()
    for frame, sample, (h, w) in zip(frames, samples, sizes, strict=True):
        frame[:, :h, :w] = sample.image
    return Batch(
        images=frames.float().div_(255),
        targets=[sample.target for sample in samples if sample.labeled],
        sizes=sizes,
        scales=[sample.scale for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        keys=[sample.digest for sample in samples],
    )


def resize_boxes(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Move boxes, ``M x 4``, xyxy, with the pixels of an image that is resized between two heights and widths."""
    resized: Tensor = F.resize(_on_canvas(boxes, old), list(new))
    return resized.as_subclass(Tensor)


def _resize(sample: Sample, size: tuple[int, int]) -> Sample:
    height, width = sample.image.shape[-2:]
    boxes = resize_boxes(sample.target["boxes"], (height, width), size)
    vertical, horizontal = sample.scale
    return sample._replace(
        image=F.resize(sample.image, list(size), antialias=True),
        target=Target(boxes=boxes, labels=sample.target["labels"]),
        scale=(vertical * size[0] / height, horizontal * size[1] / width),
        digest=None,
    )


def _boxes(sample: Sample) -> tv_tensors.BoundingBoxes:
    height, width = sample.image.shape[-2:]
    return _on_canvas(sample.target["boxes"], (height, width))


def _on_canvas(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes.clone(), format="XYXY", canvas_size=size)  # v2 may write into its input


def _with_boxes(target: Target, boxes: Tensor) -> Target:
    return Target(boxes=boxes.as_subclass(Tensor), labels=target["labels"])
