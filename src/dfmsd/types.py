"""Types shared by all of dfmsd: batches, targets, detections and feature pyramids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

FeaturePyramid = dict[str, Tensor]
"""Level name -> feature map of shape ``N x C x H x W``, finest level first."""


class LevelSpec(NamedTuple):
    """Shape of one pyramid level, and its objects: enough to pair and align it without the tensor."""

    name: str
    channels: int
    stride: float
    """Input pixels per feature cell; a whole number unless another detector's input has other pixels, see `seen_at`."""
    sizes: tuple[float, float] | None = None
    """Range of object sizes that the detector assigns to this level, lower bound included, upper bound excluded: square
    root of the box's area, in pixels of the input. 0 and infinity are open ends. None if it has no rule by size."""

    def seen_at(self, scale: float) -> LevelSpec:
        """Return the level of a detector whose input is ``scale`` times as large, in pixels of the smaller input."""
        if scale == 1:
            return self
        sizes = None if self.sizes is None else (self.sizes[0] / scale, self.sizes[1] / scale)
        return self._replace(stride=self.stride / scale, sizes=sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types: an upper bound of infinity is None, and unknown sizes are left out."""
        values = self._asdict()
        if self.sizes is None:
            del values["sizes"]
        else:
            values["sizes"] = [bound if math.isfinite(bound) else None for bound in self.sizes]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LevelSpec:
        """Read the result of `to_dict`."""
        level = cls(**values)
        if level.sizes is None:
            return level
        lower, upper = level.sizes
        return level._replace(sizes=(lower, math.inf if upper is None else upper))


class Queries(NamedTuple):
    """Predictions of a detector's ``Q`` queries for ``K`` classes in each of ``N`` images."""

    logits: Tensor
    """``N x Q x K``; the sigmoid is the score."""
    boxes: Tensor
    """``N x Q x 4``: centre x, centre y, width and height as shares of the padded input."""

    @property
    def corners(self) -> Tensor:
        """The boxes as xyxy, in the same unit."""
        center, size = self.boxes.chunk(2, dim=-1)
        return torch.cat([center - size / 2, center + size / 2], dim=-1)


class _Objects(TypedDict):
    boxes: Tensor
    labels: Tensor


class Target(_Objects, total=False):
    """Ground truth or pseudo-labels of one image.

    Keys:
        boxes: float32, ``M x 4``, xyxy in pixels of the padded network input; ``M`` may be 0.
        labels: int64, ``M``, 0-based indices into the data set's class names.
        scores: float32, ``M``, in 0..1: how far each object is of its class, for losses that can take that (see
            `Detector.soft_targets`); without this key, all are 1.
    """

    scores: Tensor


class Detections(TypedDict):
    """Detections in one image, highest score first.

    Keys:
        boxes: float32, ``K x 4``, xyxy in pixels of the padded network input.
        scores: float32, ``K``, in 0..1.
        labels: int64, ``K``, 0-based indices into the detector's class names.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """One collated batch.

    The content of an image is in the top left corner of the input, so ``original pixels = input pixels / scale``.
    """

    images: Tensor
    """float32, ``N x 3 x H x W``, RGB in [0, 1], padded on the right and at the bottom."""
    targets: list[Target]
    """Of the first images; the remaining images have no annotations."""
    sizes: list[tuple[int, int]]
    """Height and width of the content, without the padding, in input pixels."""
    scales: list[tuple[float, float]]
    """Input pixels per original pixel, vertical and horizontal."""
    image_ids: list[int]
    """``images[].id`` of the annotation file."""
    keys: Sequence[str | None] = ()
    """Cache key of each image as augmented; None without a cache, or if the same augmentation cannot recur."""
    larger: Tensor | None = None
    """The same images as the teachers see them, if these see more pixels: ``N x 3 x H' x W'``, padded likewise."""

    @property
    def for_teachers(self) -> Tensor:
        """The images that the teachers see."""
        return self.images if self.larger is None else self.larger

    def channels_last(self) -> Batch:
        """Return the batch with images in channels-last memory, in which convolutions are fastest."""
        images, larger = (
            None if value is None else value.contiguous(memory_format=torch.channels_last)
            for value in (self.images, self.larger)
        )
        assert images is not None
        return self._replace(images=images, larger=larger)

    def to(self, device: torch.device | str) -> Batch:
        """Move images and targets to a device; the other fields are not tensors."""
        targets = [_on(target, device) for target in self.targets]
        larger = None if self.larger is None else self.larger.to(device, non_blocking=True)
        return self._replace(images=self.images.to(device, non_blocking=True), targets=targets, larger=larger)


def _on(target: Target, device: torch.device | str) -> Target:
    there = Target(boxes=target["boxes"].to(device), labels=target["labels"].to(device))
    if "scores" in target:
        there["scores"] = target["scores"].to(device)
    return there
