"""Changes of a single image with its boxes."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dfmsd.data.targets import kept, moved
from dfmsd.types import Target


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
    """Whether ``target`` is to be trained on."""
    larger: Tensor | None = None
    """The image with more pixels, for the teachers, changed in the same way as ``image``; set last."""


def fit(image: Tensor, target: Target, image_size: int, image_id: int = 0) -> Sample:
    """Resize so that the longer side is ``image_size``, keeping the aspect ratio.

    Args:
        image: uint8, ``3 x H x W``.
        target: Boxes in pixels of ``image``.
        image_size: Longer side of the result, in pixels.
        image_id: Id of the sample.
    """
    height, width = image.shape[-2:]
    return resize(Sample(image, target, (1.0, 1.0), image_id), fitted_size(height, width, image_size))


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
    boxes = F.horizontal_flip(bounding_boxes(sample))
    digest = None if sample.digest is None else f"{sample.digest}-flip"
    target = moved(sample.target, boxes.as_subclass(Tensor))
    return sample._replace(image=F.horizontal_flip(sample.image), target=target, digest=digest)


def random_rescale(sample: Sample, factor: float, frame: int | tuple[int, int], rng: np.random.Generator) -> Sample:
    """Scale the content by ``factor`` and crop a random window of at most ``frame`` pixels.

    Boxes are clipped to the window and dropped if a side is below 1 pixel. The result has no digest. The offset of the
    window is not recorded, so detections in it cannot be mapped back to the original image.

    Args:
        sample: The sample.
        factor: Above 0.
        frame: Height and width of the window, or the side of a square.
        rng: Source of the position.
    """
    limit = (frame, frame) if isinstance(frame, int) else frame
    height, width = sample.image.shape[-2:]
    sample = resize(sample, (max(1, round(height * factor)), max(1, round(width * factor))))
    height, width = sample.image.shape[-2:]
    size = min(height, limit[0]), min(width, limit[1])
    # fractions, since the number of random bits that an integer takes depends on its range, and so on the image's size
    top, left = (int(rng.random() * (room + 1)) for room in (height - size[0], width - size[1]))
    boxes = F.crop(bounding_boxes(sample), top, left, *size)
    return with_pixels(sample, F.crop(sample.image, top, left, *size), boxes)


def with_pixels(sample: Sample, image: Tensor, boxes: tv_tensors.BoundingBoxes) -> Sample:
    """Return the sample with other pixels, without a digest and without boxes below 1 pixel."""
    boxes, keep = F.sanitize_bounding_boxes(boxes, min_size=1.0)
    target = moved(kept(sample.target, keep), boxes.as_subclass(Tensor))
    return sample._replace(image=image, target=target, digest=None)


def resize_boxes(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Scale boxes, ``M x 4``, xyxy, from an image of one height and width to another."""
    resized: Tensor = F.resize(_on_canvas(boxes, old), list(new))
    return resized.as_subclass(Tensor)


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize to a height and width; the result has no digest."""
    height, width = sample.image.shape[-2:]
    boxes = resize_boxes(sample.target["boxes"], (height, width), size)
    vertical, horizontal = sample.scale
    return sample._replace(
        image=F.resize(sample.image, list(size), antialias=True),
        target=moved(sample.target, boxes),
        scale=(vertical * size[0] / height, horizontal * size[1] / width),
        digest=None,
    )


def bounding_boxes(sample: Sample) -> tv_tensors.BoundingBoxes:
    """Return a copy of a sample's boxes that knows the size of its image."""
    height, width = sample.image.shape[-2:]
    return _on_canvas(sample.target["boxes"], (height, width))


def _on_canvas(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes.clone(), format="XYXY", canvas_size=size)  # v2 may modify its input in place
