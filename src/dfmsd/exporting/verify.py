"""Comparison of an exported file with its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from dfmsd.detectors.base import Detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting.formats import Format, Run, one_by_one, takes_batches
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.types import Detections, FeaturePyramid, Target
from dfmsd.utils.boxes import drop_empty
from dfmsd.utils.shapes import frame_of

SHIFTS = (1e-5, -1e-5, 1e-4, -1e-4, 1e-3, -1e-3)
"""Of the IoU threshold of suppression, to tell rounding there from an error."""


class ExportedDetector(Detector):
    """An exported file as a `Detector` that can only detect.

    Args:
        run: runs the file.
        class_names: of the labels.
    """

    def __init__(self, run: Run, class_names: Sequence[str]) -> None:
        super().__init__()
        self.run = run
        self.class_names = tuple(class_names)
        self.levels = ()

    def features(self, images: Tensor) -> FeaturePyramid:
        """Raise: exported files return no features."""
        raise DfmsdError("an exported file can only detect; use the original model")

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Raise: exported files return no features."""
        raise DfmsdError("an exported file can only detect; use the original model")

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first, with boxes clipped to each image's unpadded ``(height, width)``."""
        outputs = zip(*self.run(images), sizes, strict=True)
        return [_detections(boxes, scores, labels, size) for boxes, scores, labels, size in outputs]


def read_exported(file: Path, form: Format, graph: DetectionGraph) -> ExportedDetector:
    """Load an exported file in its own runtime.

    Args:
        file: written by ``form.write``.
        form: its format.
        graph: what was written.
    """
    run = form.read(file, graph)
    return ExportedDetector(run if takes_batches(form, graph) else one_by_one(run), graph.decoder.detector.class_names)


class Difference(NamedTuple):
    """Largest differences between the detections of two detectors."""

    boxes: float
    """Of a box coordinate, as a fraction of the input side."""
    scores: float
    detections: int = 0
    """Number of detections compared."""

    @property
    def largest(self) -> float:
        """The larger one of the two."""
        return max(self.boxes, self.scores)

    def __or__(self, other: Difference) -> Difference:
        """Combine two comparisons."""
        return Difference(
            max(self.boxes, other.boxes), max(self.scores, other.scores), self.detections + other.detections
        )


def compare_detections(expected: Detections, actual: Detections, side: int, threshold: float, limit: int) -> Difference:
    """Match the detections of one image by label and distance, and return the largest differences.

    Rounding can push detections across the score threshold or past the end of a full list. A poor match therefore
    counts as two unmatched detections if that is the smaller difference: the excess of a score over the lowest score
    that the other side could report.

    Args:
        expected: of the model, best first.
        actual: of the file, best first.
        side: of the input, in pixels.
        threshold: minimum score of detections.
        limit: maximum number of detections per image.
    """
    lowest = [float(one["scores"][-1]) if len(one["scores"]) >= limit else threshold for one in (expected, actual)]
    largest = Difference(0.0, 0.0, len(expected["scores"]))
    left = list(range(len(actual["scores"])))
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"], strict=True):
        cost = Difference(0.0, float(score) - lowest[1])
        same = [index for index in left if actual["labels"][index] == label]
        if same:
            boxes = (actual["boxes"][same] - box).abs().amax(dim=1) / side
            scores = (actual["scores"][same] - score).abs()
            worse = torch.maximum(boxes, scores)
            nearest = int(worse.argmin())
            other = float(actual["scores"][same[nearest]]) - lowest[0]
            if float(worse[nearest]) <= max(cost.scores, other):  # false for NaN
                cost = Difference(float(boxes[nearest]), float(scores[nearest]))
                left.remove(same[nearest])
        largest |= cost
    for index in left:
        largest |= Difference(0.0, float(actual["scores"][index]) - lowest[0])
    return largest


def compare_detectors(
    detector: Detector, exported: Detector, batches: Sequence[Tensor], threshold: float, limit: int, tolerance: float
) -> Difference:
    """Compare two detectors on images that fill the input.

    Where two boxes overlap as much as the suppression allows, rounding decides whether one of them goes. An image that
    differs by more than the tolerance is therefore compared with the model's detections at slightly other thresholds
    as well.

    Args:
        detector: the model, in eval mode.
        exported: the file.
        batches: each ``N x 3 x H x W``.
        threshold: minimum score of detections.
        limit: maximum number of detections per image.
        tolerance: largest difference that needs no other threshold.
    """
    largest = Difference(0.0, 0.0)
    for images in batches:
        actual = [drop_empty(found) for found in exported.detect(images, _sizes(images))]
        found = _differences(detector, actual, images, threshold, limit)
        for shift in SHIFTS:
            if all(one.largest <= tolerance for one in found):
                break
            with shifted_suppression(detector, shift):
                other = _differences(detector, actual, images, threshold, limit)
            found = [min(pair, key=lambda one: one.largest) for pair in zip(found, other, strict=True)]
        for one in found:
            largest |= one
    return largest


@contextmanager
def shifted_suppression(detector: Detector, shift: float) -> Iterator[None]:
    """Move the IoU thresholds above which a detector's boxes suppress each other."""
    modules: list[Any] = [module for module in detector.modules() if hasattr(module, "nms_thresh")]
    heads = [(module, module.nms_thresh) for module in modules]
    try:
        for module, threshold in heads:
            module.nms_thresh = threshold + shift
        yield
    finally:
        for module, threshold in heads:
            module.nms_thresh = threshold


def _differences(
    detector: Detector, actual: Sequence[Detections], images: Tensor, threshold: float, limit: int
) -> list[Difference]:
    expected = map(drop_empty, detector.detect(images, _sizes(images)))
    pairs = zip(expected, actual, strict=True)
    return [compare_detections(one, other, images.shape[-1], threshold, limit) for one, other in pairs]


def _sizes(images: Tensor) -> list[tuple[int, int]]:
    return [frame_of(images)] * len(images)


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]) -> Detections:
    keep = scores > 0
    clipped = clip_boxes_to_image(boxes[keep], (int(size[0]), int(size[1])))
    return Detections(boxes=clipped, scores=scores[keep], labels=labels[keep])
