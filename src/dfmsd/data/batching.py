"""Batching of samples.

The content of an image is always in the top left corner of its padded frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dfmsd.data.config import STRIDE
from dfmsd.data.transforms import Sample
from dfmsd.types import Batch


def collate(samples: Sequence[Sample], image_size: int | None = None, teacher_size: int | None = None) -> Batch:
    """Pad samples with black at the right and the bottom, and stack them.

    Args:
        samples: At least one; unlabeled ones are moved to the end.
        image_size: Side of the square frame in pixels; by default the largest height and width among the samples,
            rounded up to multiples of 32.
        teacher_size: Side of the frame of the samples' larger images, if they have any.
    """
    samples = sorted(samples, key=lambda sample: not sample.labeled)
    larger = [sample.larger for sample in samples if sample.larger is not None]
    return Batch(
        images=_padded([sample.image for sample in samples], image_size),
        targets=[sample.target for sample in samples if sample.labeled],
        sizes=[_size(sample.image) for sample in samples],
        scales=[sample.scale for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        keys=[sample.digest for sample in samples],
        larger=_padded(larger, teacher_size) if larger else None,
    )


def _padded(images: Sequence[Tensor], side: int | None) -> Tensor:
    """Return uint8 images, ``3 x H x W``, in one float32 frame, ``N x 3 x H' x W'``."""
    sizes = [_size(image) for image in images]
    height, width = (side or -(-max(lengths) // STRIDE) * STRIDE for lengths in zip(*sizes, strict=True))
    frames = torch.empty((len(images), 3, height, width), memory_format=torch.channels_last)  # as images are decoded
    for frame, image, (h, w) in zip(frames, images, sizes, strict=True):
        frame[:, :h, :w].copy_(image).div_(255)
        frame[:, h:] = 0
        frame[:, :h, w:] = 0
    return frames


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])
