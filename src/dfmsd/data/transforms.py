"""Resizing, augmentation and batching of images with boxes.

The content of an image is always in the top left corner of its padded frame.
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

from dfmsd.data.config import STRIDE
from dfmsd.types import Batch, Target


class Sample(NamedTuple):
    """One image and its boxes, before padding."""

    image: Tensor
    """uint8, ``3 x H x W``, RGB."""
    target: Target
    """Boxes in pixels of ``image``."""
    scale: tuple[float, float]
    """Pixels of ``image`` per original pixel, vertical and horizontal."""
    image_id: int
    digest: str | None = None
    """Key of the pixels for feature caches, if requested; None after random rescaling, which rarely repeats."""
    labeled: bool = True
    """Whether the image has been annotated."""


def fit(image: Tensor, target: Target, image_size: int, image_id: int = 0) -> Sample:
    """Resize so that the longer side is ``image_size``, keeping the aspect ratio.

    Args:
        image: uint8, ``3 x H x W``.
        target: Boxes in pixels of ``image``.
        image_size: Longer side of the result, in pixels.
        image_id: Id of the sample.
    """
    height, width = image.shape[-2:]
    return _resize(Sample(image, target, (1.0, 1.0), image_id), fitted_size(height, width, image_size))


def fitted_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return the height and width that `fit` resizes to."""
    longer = max(height, width)
    return max(1, round(height * image_size / longer)), max(1, round(width * image_size / longer))


def pixel_digest(image: Tensor) -> str:
    """Hash shape and pixels of a uint8 image."""
    content = hashlib.blake2b(str(tuple(image.shape)).encode(), digest_size=16)
    content.update(image.contiguous().numpy().data)
    return content.hexdigest()


def hflip(sample: Sample) -> Sample:
    """Flip the unpadded content left to right."""
    boxes = F.horizontal_flip(_boxes(sample))
    digest = None if sample.digest is None else f"{sample.digest}-flip"
    return sample._replace(
        image=F.horizontal_flip(sample.image), target=_with_boxes(sample.target, boxes), digest=digest
    )


def random_rescale(sample: Sample, factor: float, frame: int, rng: np.random.Generator) -> Sample:
    """Scale the content by ``factor`` and crop a random window of at most ``frame x frame`` pixels.

    Boxes are clipped to the window and dropped if a side is below 1 pixel. The result has no digest. The offset of the
    window is not recorded, so detections in it cannot be mapped back to the original image.
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
    """Random rescaling and horizontal flip of training samples.

    Attributes:
        image_size: Side of the frame, in pixels.
        flip: Probability of a horizontal flip, 0..1.
        scale_jitter: Lowest and highest factor of random rescaling, or None.
    """

    image_size: int
    flip: float = 0.5
    scale_jitter: tuple[float, float] | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Augment one sample with random numbers from ``rng``."""
        if self.scale_jitter is not None:
            sample = random_rescale(sample, rng.uniform(*self.scale_jitter), self.image_size, rng)
        return hflip(sample) if rng.random() < self.flip else sample


def collate(samples: Sequence[Sample], image_size: int | None = None) -> Batch:
    """Pad samples with black at the right and the bottom, and stack them.

    Args:
        samples: At least one; unlabeled ones last.
        image_size: Side of the square frame in pixels; by default the largest height and width among the samples,
            rounded up to multiples of 32.
    """
    sizes = [(int(sample.image.shape[-2]), int(sample.image.shape[-1])) for sample in samples]
    height, width = (image_size or -(-max(side) // STRIDE) * STRIDE for side in zip(*sizes, strict=True))
    # uint8 and channels last, as images are decoded: padding is a plain copy, and the batch is converted only once
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
    """Scale boxes, ``M x 4``, xyxy, from an image of one height and width to another."""
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
    return tv_tensors.BoundingBoxes(boxes.clone(), format="XYXY", canvas_size=size)  # v2 may modify its input in place


def _with_boxes(target: Target, boxes: Tensor) -> Target:
    return Target(boxes=boxes.as_subclass(Tensor), labels=target["labels"])
