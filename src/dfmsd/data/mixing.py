"""Augmentations that combine several labeled samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dfmsd.data.targets import joined, moved
from dfmsd.data.transforms import Sample, random_rescale

CENTER = (0.3, 0.7)
"""Range of the point where the images of a mosaic meet, relative to the frame."""


def mosaic(samples: Sequence[Sample], side: int, scales: tuple[float, float], rng: np.random.Generator) -> Sample:
    """Combine four samples into one image; they meet in a random point.

    Each is scaled, cropped to its quarter of the frame, and moved towards the point; the rest of the frame is black.

    Args:
        samples: Four; the result has the id and scale of the first one.
        side: Of the frame, in pixels.
        scales: Lowest and highest factor of random rescaling.
        rng: Source of all random numbers.

    Source: the mosaic of YOLOv4, with a frame of the size of one image instead of four.
    """
    row, column = (round(side * position) for position in rng.uniform(*CENTER, size=2))
    frame = torch.zeros(3, side, side, dtype=torch.uint8)
    targets = []
    for number, sample in enumerate(samples):
        below, right = divmod(number, 2)
        room = (side - row if below else row, side - column if right else column)
        part = random_rescale(sample, rng.uniform(*scales), room, rng)
        height, width = part.image.shape[-2:]
        top, left = row if below else row - height, column if right else column - width
        frame[:, top : top + height, left : left + width] = part.image
        targets.append(moved(part.target, part.target["boxes"] + torch.tensor([left, top, left, top])))
    return samples[0]._replace(image=frame, target=joined(targets), digest=None)


def mixup(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Blend two samples, top left on top left; the result has the boxes of both.

    The share of the first one is drawn from Beta(32, 32), so it is near one half.

    Args:
        first: The result has its id and scale.
        second: Another sample.
        rng: Source of the share.

    Source: mixup (Zhang et al. 2018), with the distribution of YOLOv5.
    """
    share = float(rng.beta(32, 32))
    height, width = (max(sides) for sides in zip(first.image.shape[-2:], second.image.shape[-2:], strict=True))
    blend = torch.zeros(3, height, width)
    for sample, weight in ((first, share), (second, 1 - share)):
        blend[:, : sample.image.shape[-2], : sample.image.shape[-1]] += weight * sample.image
    image = blend.round().to(torch.uint8)
    return first._replace(image=image, target=joined([first.target, second.target]), digest=None)
