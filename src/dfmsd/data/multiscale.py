"""Random sizes of whole training batches, drawn from seed, epoch and batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.nn.functional import interpolate

from dfmsd.data.config import STRIDE
from dfmsd.data.targets import moved
from dfmsd.types import Batch, Target

STREAM = 1
"""Keeps the numbers apart from those of the images, which are drawn from (seed, epoch, index)."""


@dataclass(frozen=True)
class MultiScale:
    """Resizing of whole batches to one of several sizes.

    All processes draw the same size for the same batch, so that none waits for a larger one.

    Attributes:
        image_size: Longer side of the images before, in pixels.
        sizes: Longer sides after, in pixels; at least one.
        seed: At least 0.
    """

    image_size: int
    sizes: tuple[int, ...]
    seed: int

    def __call__(self, batch: Batch, epoch: int, index: int) -> Batch:
        """Resize a batch.

        Args:
            batch: Images on any device.
            epoch: From 0.
            index: Of the batch in its epoch, from 0.
        """
        rng = np.random.default_rng((self.seed, epoch, index, STREAM))
        return resize_batch(batch, self.sizes[rng.integers(len(self.sizes))] / self.image_size)


def resize_batch(batch: Batch, factor: float) -> Batch:
    """Resize the padded images of a batch and their boxes; both sides are rounded to multiples of 32.

    Args:
        batch: Images on any device.
        factor: Above 0.

    Returns:
        The batch, without keys of cached features unless its size is the same.
    """
    height, width = batch.images.shape[-2:]
    size = tuple(max(1, round(side * factor / STRIDE)) * STRIDE for side in (height, width))
    if size == (height, width):
        return batch
    vertical, horizontal = size[0] / height, size[1] / width
    return batch._replace(
        images=interpolate(batch.images, size, mode="bilinear", antialias=True),
        targets=[_scaled(target, vertical, horizontal) for target in batch.targets],
        sizes=[(round(h * vertical), round(w * horizontal)) for h, w in batch.sizes],
        scales=[(v * vertical, h * horizontal) for v, h in batch.scales],
        keys=[None] * len(batch.keys),
    )


def _scaled(target: Target, vertical: float, horizontal: float) -> Target:
    boxes = target["boxes"].clone()  # scaled by numbers, as a tensor of factors would make a GPU wait for the host
    boxes[:, 0::2] *= horizontal
    boxes[:, 1::2] *= vertical
    return moved(target, boxes)
