"""The few objects that every part of dfmsd exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

FeaturePyramid = dict[str, Tensor]
"""Level name -> feature map ``N x C x H x W``, finest level first."""


class LevelSpec(NamedTuple):
    """What one pyramid level looks like: enough to pair and align it, without the tensor."""

    name: str
    channels: int
    stride: int
    """Input pixels per feature cell."""


class Target(TypedDict):
    """Ground truth of one image, in pixels of the padded network input.

    Keys:
        boxes: float32, ``M x 4``, xyxy, ``M`` may be 0.
        labels: int64, ``M``, indices into the data set's class names, from 0.
    """

    boxes: Tensor
    labels: Tensor


class Detections(TypedDict):
    """Detections in one image, best first.

    Keys:
        boxes: float32, ``K x 4``, xyxy in pixels of the padded network input.
        scores: float32, ``K``, in 0..1.
        labels: int64, ``K``, indices into the detector's class names, from 0.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """One collated batch.

    The image content sits in the top left corner of the padded input, so that
    ``original pixels = input pixels / scale``.
    """

    images: Tensor
    """float32, ``N x 3 x H x W``, RGB in [0, 1], padded at the right and the bottom."""
    targets: list[Target]
    """Of the first images; those behind have no annotations."""
    sizes: list[tuple[int, int]]
    """Height and width of the content, without the padding, in input pixels."""
    scales: list[tuple[float, float]]
    """Input pixels per original pixel, vertical and horizontal."""
    image_ids: list[int]
    """``images[].id`` of the annotation file."""
    keys: Sequence[str | None] = ()
    """What each image shows, as a key of caches; None where nobody asked, or where the geometry never comes again."""

    def to(self, device: torch.device | str) -> Batch:
        """Move images and targets; the rest of a batch stays on the host."""
        targets: list[Target] = [
            {"boxes": t["boxes"].to(device), "labels": t["labels"].to(device)} for t in self.targets
        ]
        return self._replace(images=self.images.to(device, non_blocking=True), targets=targets)
