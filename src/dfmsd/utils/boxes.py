"""Boxes with and without area, and elementwise IoU and GIoU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.types import Detections

EPS = 1e-6
"""Lower bound of areas used as divisors, as in the official code of GFL and CrossKD."""


def has_area(boxes: Tensor) -> Tensor:
    """Return which boxes, ``K x 4``, xyxy, have width and height; clipping leaves none of those beyond the image."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def drop_empty(detections: Detections) -> Detections:
    """Drop the boxes without area."""
    return keep_detections(detections, has_area(detections["boxes"]))


def keep_detections(detections: Detections, keep: Tensor) -> Detections:
    """Return a part of the detections.

    Args:
        detections: ``K``.
        keep: Bool, ``K``.
    """
    return Detections(
        boxes=detections["boxes"][keep], scores=detections["scores"][keep], labels=detections["labels"][keep]
    )


class BoxOverlap(NamedTuple):
    """Overlap of box pairs; boxes without area overlap nothing."""

    iou: Tensor
    """Intersection over union, in [0, 1]."""
    giou: Tensor
    """Generalized IoU, in [-1, 1]: IoU minus the share of the enclosing box that neither box covers."""


def elementwise_iou(first: Tensor, second: Tensor) -> BoxOverlap:
    """Compute IoU and GIoU of corresponding boxes; ``torchvision.ops.box_iou`` compares every pair instead.

    Args:
        first: ``... x 4``, xyxy.
        second: ``... x 4``, xyxy, of a shape that broadcasts with ``first``.

    Returns:
        IoU and GIoU, each of the broadcast shape without its last dimension.
    """
    x1, y1, x2, y2 = first.unbind(-1)
    u1, v1, u2, v2 = second.unbind(-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection
    enclosing = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) * (torch.maximum(y2, v2) - torch.minimum(y1, v1))
    iou = intersection / union.clamp(min=EPS)
    return BoxOverlap(iou, iou - (enclosing - union) / enclosing.clamp(min=EPS))
