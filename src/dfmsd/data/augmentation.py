"""Augmentation of training samples; every random number comes from the generator that is passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dfmsd.data.mixing import mixup, mosaic
from dfmsd.data.transforms import Sample, bounding_boxes, fitted_size, hflip, random_rescale, resize, with_pixels

COLORS = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.7, hue=0.015)
"""The ranges of YOLOv5 for saturation, value and hue. Not torchvision's ``RandomPhotometricDistort``, which also
exchanges the channels: the color of an object may be what tells its class."""
Partners = Callable[[int], Sequence[Sample]]
"""Draws this many other samples of the data set."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training sample, in the order of application.

    All but ``flip`` drop the sample's digest: its pixels rarely come back.

    Attributes:
        image_size: Side of the frame, in pixels.
        flip: Probability of a horizontal flip, 0..1; the last change.
        scale_jitter: Lowest and highest factor of random rescaling, or None; images in a mosaic are scaled by it alone.
        photometric: Probability of changing brightness, contrast, saturation and hue.
        zoom_out: Probability of placing the image on a black canvas of up to 2 times its sides.
        iou_crop: Probability of a crop that keeps objects, as in SSD.
        mosaic: Probability of combining the sample with three others.
        mixup: Probability of blending it with another one.
        mixing_epochs: Epochs with ``mosaic`` and ``mixup``, from the first one on; None for all.
    """

    image_size: int
    flip: float = 0.5
    scale_jitter: tuple[float, float] | None = None
    photometric: float = 0.0
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    mixing_epochs: int | None = None

    def __call__(
        self, sample: Sample, rng: np.random.Generator, epoch: int = 0, partners: Partners | None = None
    ) -> Sample:
        """Augment one sample.

        Args:
            sample: From `fit`.
            rng: Source of all random numbers.
            epoch: From 0.
            partners: Samples to mix with; without them ``mosaic`` and ``mixup`` are skipped.
        """
        if self.mixing_epochs is not None and epoch >= self.mixing_epochs:
            partners = None
        if partners is not None and _happens(self.mosaic, rng):
            scales = self.scale_jitter or (1.0, 1.0)
            sample = mosaic([sample, *partners(3)], self.image_size, scales, rng)
        else:
            sample = self._move(sample, rng)
        if partners is not None and _happens(self.mixup, rng):
            (partner,) = partners(1)
            sample = mixup(sample, partner, rng)
        if _happens(self.photometric, rng):
            image = _seeded(COLORS, rng, tv_tensors.Image(sample.image))
            sample = sample._replace(image=image.as_subclass(Tensor), digest=None)
        return hflip(sample) if rng.random() < self.flip else sample

    def _move(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Apply the changes of scale and position to a single image."""
        if _happens(self.zoom_out, rng):
            sample = self._refit(_geometric(v2.RandomZoomOut(side_range=(1.0, 2.0), p=1.0), sample, rng))
        # without an object, no crop keeps one, and the search for it takes longer than everything else
        if _happens(self.iou_crop, rng) and len(sample.target["boxes"]):
            sample = self._refit(_geometric(v2.RandomIoUCrop(), sample, rng))
        if self.scale_jitter is not None:
            sample = random_rescale(sample, rng.uniform(*self.scale_jitter), self.image_size, rng)
        return sample

    def _refit(self, sample: Sample) -> Sample:
        height, width = sample.image.shape[-2:]
        return resize(sample, fitted_size(height, width, self.image_size))


def _geometric(transform: v2.Transform, sample: Sample, rng: np.random.Generator) -> Sample:
    image, boxes = _seeded(transform, rng, tv_tensors.Image(sample.image), bounding_boxes(sample))
    return with_pixels(sample, image.as_subclass(Tensor), boxes)


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Draw whether a change happens; one that is off draws nothing, so that it leaves the others as they are."""
    return probability > 0 and rng.random() < probability


def _seeded(transform: v2.Transform, rng: np.random.Generator, *inputs: Any) -> Any:
    """Apply a transform of torchvision, which draws from the global generator, with numbers from ``rng``."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would reseed GPUs, too
        return transform(*inputs)
