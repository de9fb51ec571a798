"""Matching of detections with ground-truth objects, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from dfmsd.types import Detections, Target
from dfmsd.utils.boxes import keep_detections

MIN_IOU = 0.5


class ImageMatches(NamedTuple):
    """Detections in one image and whether each is correct."""

    detections: Detections
    correct: Tensor
    """Bool, ``K``: matched with an object of the same class."""
    objects: int
    """Number of ground-truth objects."""

    def above(self, threshold: float) -> ImageMatches:
        """Keep the detections whose score is at least the threshold."""
        keep = self.detections["scores"] >= threshold
        return ImageMatches(keep_detections(self.detections, keep), self.correct[keep], self.objects)

    @property
    def true_positives(self) -> int:
        """Number of correct detections."""
        return int(self.correct.sum())

    @property
    def f1(self) -> float:
        """``2 TP / (objects + detections)``, 0..1; 1 for an image without objects and detections."""
        total = self.objects + len(self.correct)
        return 2 * self.true_positives / total if total else 1.0

    def describe(self) -> str:
        """Return the number of objects found and of wrong detections as text."""
        return f"{self.true_positives} of {self.objects} found, {len(self.correct) - self.true_positives} wrong"


def to_data_labels(detections: Detections, data_label: Mapping[int, int]) -> Detections:
    """Replace a detector's labels by the data set's; detections of other classes are dropped.

    Args:
        detections: on any device.
        data_label: label of the detector -> label of the data set, see `common_classes`.
    """
    labels = torch.tensor([data_label.get(label, -1) for label in detections["labels"].tolist()], dtype=torch.int64)
    labels = labels.to(detections["boxes"].device)
    return keep_detections({**detections, "labels": labels}, labels >= 0)


def match_detections(detections: Detections, target: Target) -> ImageMatches:
    """Match detections with objects of their class, highest score first, each object at most once.

    Args:
        detections: sorted by descending score; labels of the data set.
        target: ground truth, in the same pixel coordinates.
    """
    labels = detections["labels"]
    overlap = box_iou(detections["boxes"], target["boxes"]) * (labels[:, None] == target["labels"][None])
    correct = torch.zeros(len(labels), dtype=torch.bool)
    for row in range(len(labels) if overlap.shape[1] else 0):
        best, column = overlap[row].max(dim=0)
        if best >= MIN_IOU:
            correct[row] = True
            overlap[:, column] = 0
    return ImageMatches(detections, correct, len(target["labels"]))


def best_threshold(images: Sequence[ImageMatches]) -> float:
    """Return the score threshold with the highest F1 over all images; 1 if no detection is correct.

    A match never depends on detections with lower scores, so raising the threshold changes no other match.
    """
    scores = torch.cat([image.detections["scores"] for image in images])
    correct = torch.cat([image.correct for image in images])
    if not correct.any():
        return 1.0
    order = scores.argsort(descending=True)
    true_positives = correct[order].cumsum(0)
    f1 = 2 * true_positives / (sum(image.objects for image in images) + torch.arange(1, len(order) + 1))
    return float(scores[order][f1.argmax()])
