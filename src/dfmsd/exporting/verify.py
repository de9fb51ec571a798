"""An exported file beside the model that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from dfmsd.detectors.base import Detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting.formats import Run
from dfmsd.types import Detections, FeaturePyramid, Target


class ExportedDetector(Detector):
    """A file, run by its own runtime, behind the contract as far as it goes: it detects.

    Args:
        run: the file.
        class_names: of the labels.
    """

    def __init__(self, run: Run, class_names: Sequence[str]) -> None:
        super().__init__()
        self.run = run
        self.class_names = tuple(class_names)
        self.levels = ()

    def features(self, images: Tensor) -> FeaturePyramid:
        """Refuse."""
        raise DfmsdError("an exported file only detects: take the model that it was made of")

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Refuse."""
        raise DfmsdError("an exported file only detects: take the model that it was made of")

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)`` at the end."""
        found = zip(*self.run(images), sizes, strict=True)
        return [_detections(boxes, scores, labels, size) for boxes, scores, labels, size in found]


class Difference(NamedTuple):
    """Largest differences between two detectors."""

    boxes: float
    """Of a box's side, as a fraction of the input's, so that it weighs as much as one of a score."""
    scores: float
    detections: int = 0
    """That were compared."""

    def __or__(self, other: Difference) -> Difference:
        """Join two comparisons."""
        return Difference(
            max(self.boxes, other.boxes), max(self.scores, other.scores), self.detections + other.detections
        )


def compare(expected: Detections, found: Detections, side: int, threshold: float, limit: int) -> Difference:
    """Match detections of one image by label and nearness, and give the largest differences.

    Rounding moves detections over the threshold, and over the end of a full list. So two that match badly count as
    found by one side alone where that is the smaller difference: what a score has over the lowest that the other side
    could tell.

    Args:
        expected: of the model, best first.
        found: of the file, best first.
        side: of the input, in pixels.
        threshold: score that detections are above.
        limit: of detections in an image.
    """
    lowest = [float(one["scores"][-1]) if len(one["scores"]) >= limit else threshold for one in (expected, found)]
    largest = Difference(0.0, 0.0, len(expected["scores"]))
    left = list(range(len(found["scores"])))
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"], strict=True):
        cost = Difference(0.0, float(score) - lowest[1])
        same = [place for place in left if found["labels"][place] == label]
        if same:
            boxes = (found["boxes"][same] - box).abs().amax(dim=1) / side
            scores = (found["scores"][same] - score).abs()
            worse = torch.maximum(boxes, scores)
            nearest = int(worse.argmin())
            other = float(found["scores"][same[nearest]]) - lowest[0]
            if float(worse[nearest]) <= max(cost.scores, other):  # not so where it is no number
                cost = Difference(float(boxes[nearest]), float(scores[nearest]))
                left.remove(same[nearest])
        largest |= cost
    for place in left:
        largest |= Difference(0.0, float(found["scores"][place]) - lowest[0])
    return largest


def compare_detectors(
    detector: Detector, exported: Detector, batches: Sequence[Tensor], threshold: float, limit: int
) -> Difference:
    """Run both on the same images, each of which fills the input.

    Args:
        detector: the model, in eval mode.
        exported: the file.
        batches: each ``N x 3 x H x W``.
        threshold: score that detections are above.
        limit: of detections in an image.
    """
    largest = Difference(0.0, 0.0)
    for images in batches:
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        for pair in zip(detector.detect(images, sizes), exported.detect(images, sizes), strict=True):
            largest |= compare(*pair, images.shape[-1], threshold, limit)
    return largest


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]) -> Detections:
    keep = scores > 0
    clipped = clip_boxes_to_image(boxes[keep], (int(size[0]), int(size[1])))
    return Detections(boxes=clipped, scores=scores[keep], labels=labels[keep])
