"""Detections averaged over images and their mirror images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from dfmsd.detectors.base import Detector
from dfmsd.evaluation.evaluate import detect
from dfmsd.types import Batch, Detections
from dfmsd.utils.boxes import drop_empty

FUSED_FROM = 0.55
"""Lowest IoU of boxes that are fused."""


def detect_both_ways(detector: Detector, batch: Batch) -> list[Detections]:
    """Detect in a batch and in its mirror image, and fuse the detections, see `fuse`.

    Args:
        detector: The detector.
        batch: The content of an image is flipped in place, so that its padding stays at the right.
    """
    flipped = _flip(batch.images, batch.sizes)
    views = zip(detect(detector, batch), detect(detector, batch._replace(images=flipped)), batch.sizes, strict=True)
    return [fuse(seen, _flip_boxes(mirrored, width)) for seen, mirrored, (_, width) in views]


def fuse(first: Detections, second: Detections) -> Detections:
    """Fuse two detectors' detections in one image, best first.

    Boxes of one class that overlap a better one by `FUSED_FROM` are fused with it: the box is their mean, weighted by
    their scores, and the score the mean of each detector's best one, 0 if it has none.

    Source: weighted boxes fusion (arXiv 1910.13302). Differs from the official code in choosing the boxes to fuse with
    by non-maximum suppression, and in counting a detector once.
    """
    boxes, scores, labels = (
        torch.cat([first["boxes"], second["boxes"]]).float(),
        torch.cat([first["scores"], second["scores"]]).float(),
        torch.cat([first["labels"], second["labels"]]),
    )
    if not len(boxes):
        return first
    kept = batched_nms(boxes, scores, labels, FUSED_FROM)
    overlap = box_iou(boxes[kept], boxes) * (labels[kept, None] == labels)
    best, owner = overlap.max(dim=0)
    members = (torch.arange(len(kept), device=owner.device)[:, None] == owner) & (best >= FUSED_FROM)
    weights = scores * members
    fused = (weights @ boxes) / weights.sum(dim=1, keepdim=True)
    seen = torch.arange(len(boxes), device=owner.device) < len(first["boxes"])
    mean = ((weights * seen).amax(dim=1) + (weights * ~seen).amax(dim=1)) / 2
    order = mean.argsort(descending=True)
    return drop_empty(Detections(boxes=fused[order], scores=mean[order], labels=labels[kept][order]))


def _flip(images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    flipped = images.clone()
    for image, (height, width) in zip(flipped, sizes, strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
    return flipped


def _flip_boxes(detections: Detections, width: int) -> Detections:
    x1, y1, x2, y2 = detections["boxes"].unbind(1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    return Detections(boxes=boxes, scores=detections["scores"], labels=detections["labels"])
