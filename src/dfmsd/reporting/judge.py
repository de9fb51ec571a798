"""Which detections are right, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from dfmsd.types import Detections, Target

MIN_IOU = 0.5


class Judged(NamedTuple):
    """Detections in one image beside the truth."""

    detections: Detections
    right: Tensor
    """Bool, ``K``: matched with an object of its class."""
    objects: int
    """How many there are."""

    def at(self, threshold: float) -> Judged:
        """Leave out detections with a lower score."""
        keep = self.detections["scores"] >= threshold
        boxes, scores, labels = (self.detections[name][keep] for name in ("boxes", "scores", "labels"))
        return Judged(Detections(boxes=boxes, scores=scores, labels=labels), self.right[keep], self.objects)

    @property
    def found(self) -> int:
        """How many objects were found."""
        return int(self.right.sum())

    @property
    def f1(self) -> float:
        """2 found / (objects + detections), 0..1; 1 where there is nothing and nothing was found."""
        total = self.objects + len(self.right)
        return 2 * self.found / total if total else 1.0

    def in_words(self) -> str:
        """Count what is right and wrong."""
        return f"{self.found} of {self.objects} found, {len(self.right) - self.found} wrong"


def judge(detections: Detections, target: Target) -> Judged:
    """Match detections with objects of their class, the best score first, each object once.

    Args:
        detections: best first; labels of the data set.
        target: the truth, in the same pixels.
    """
    labels = detections["labels"]
    overlap = box_iou(detections["boxes"], target["boxes"]) * (labels[:, None] == target["labels"][None])
    right = torch.zeros(len(labels), dtype=torch.bool)
    for place in range(len(labels) if overlap.shape[1] else 0):
        best, column = overlap[place].max(dim=0)
        if best >= MIN_IOU:
            right[place] = True
            overlap[:, column] = 0
    return Judged(detections, right, len(target["labels"]))


def best_threshold(judged: Sequence[Judged]) -> float:
    """Give the score from which on detections have the highest F1 over all images; 1 where none is right.

    A match never depends on detections with a lower score, so that leaving those out changes no other.
    """
    scores = torch.cat([one.detections["scores"] for one in judged])
    right = torch.cat([one.right for one in judged])
    if not right.any():
        return 1.0
    order = scores.argsort(descending=True)
    found = right[order].cumsum(0)
    f1 = 2 * found / (sum(one.objects for one in judged) + torch.arange(1, len(order) + 1))
    return float(scores[order][f1.argmax()])
