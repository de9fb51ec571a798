"""ATSS assignment and GFL's losses with continuous targets, as functions of a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dfmsd.utils.boxes import EPS, elementwise_iou

NEAREST = 9
"""Candidate anchors per level of an object."""
CENTER_MARGIN = 0.01
"""Least distance of an anchor's center from the sides of its object, in pixels."""
VALUABLE_FROM = 0.25
"""Lower end of the valuable region, relative to an object's threshold."""


class Assignment(NamedTuple):
    """Assignment of anchors to objects."""

    matched: Tensor
    """Int64, ``N x A``: index of the anchor's object, -1 for background."""
    threshold: Tensor
    """``N x M``: lowest overlap of an object's anchors."""


def pad_objects(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack all images' objects: boxes ``N x M x 4``, labels ``N x M``, M at least 1.

    Padded boxes have no area, so that no anchor is assigned to them.
    """
    padded, classes = pad_sequence(list(boxes), batch_first=True), pad_sequence(list(labels), batch_first=True)
    missing = int(padded.shape[1] == 0)
    return F.pad(padded, (0, 0, 0, missing)), F.pad(classes, (0, missing))


def assign(anchors: Tensor, counts: Sequence[int], boxes: Tensor) -> Assignment:
    """Assign anchors to objects as ATSS does.

    An object's candidates are the `NEAREST` anchors of each level by distance of the centers. It gets those whose IoU
    with it is at least the mean + standard deviation over all candidates and whose center lies inside it. An anchor of
    several objects is assigned to the one that it overlaps most.

    Args:
        anchors: ``A x 4``, xyxy, level by level.
        counts: Number of anchors on each level.
        boxes: ``N x M x 4``, xyxy, padded with boxes without area.

    Source: ATSS (arXiv 1912.02424), ``ATSSAssigner`` of MMDetection, as GFL uses it. Differs from the official code in
    keeping anchors on the padding of a batch, as torchvision's detectors do.
    """
    centers = _center(anchors)
    nearest = _nearest(_center(boxes), centers, counts)
    overlap = elementwise_iou(anchors[nearest], boxes.unsqueeze(2)).iou
    threshold = overlap.mean(dim=2) + overlap.std(dim=2)
    inside = _inside(centers[nearest], boxes.unsqueeze(2))
    taken = torch.where((overlap >= threshold.unsqueeze(2)) & inside, overlap, -1)
    candidates = overlap.new_full((*boxes.shape[:2], len(anchors)), -1).scatter_(2, nearest, taken)
    best, matched = candidates.max(dim=1)
    return Assignment(torch.where(best >= 0, matched, -1), threshold)


def valuable_region(anchors: Tensor, boxes: Tensor, threshold: Tensor) -> Tensor:
    r"""Return the overlap of anchors that nearly match an object, 0 elsewhere: ``N x A``.

    These have $\frac14 t \le DIoU < t$ for an object with threshold $t$, with $DIoU = IoU - d^2 / c^2$, $d$ the
    distance of the centers and $c$ the diagonal of the enclosing box.

    Args:
        anchors: ``A x 4``, xyxy.
        boxes: ``N x M x 4``, xyxy, padded with boxes without area.
        threshold: See `Assignment`.

    Source: the valuable localization region of LD (arXiv 2102.12252, HikariTJU/LD, ``get_vlr_region``).
    """
    anchors, boxes = anchors.expand(1, 1, -1, -1), boxes.unsqueeze(2)
    overlap = elementwise_iou(anchors, boxes).iou
    hull = torch.maximum(anchors[..., 2:], boxes[..., 2:]) - torch.minimum(anchors[..., :2], boxes[..., :2])
    distance = (_center(anchors) - _center(boxes)).square().sum(dim=-1)
    measure = overlap - distance / hull.square().sum(dim=-1).clamp(min=EPS)
    threshold = threshold.unsqueeze(2)
    return torch.where((measure < threshold) & (measure >= VALUABLE_FROM * threshold), overlap, 0).amax(dim=1)


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    r"""Return the sum of $BCE(x, y) \cdot (y - \sigma(x))^2$.

    Args:
        logits: $x$, of any shape.
        quality: $y$, of the same shape: overlap of box and object at the object's class, 0 elsewhere; detached.

    Source: GFL (arXiv 2006.04388, implus/GFocal), with its exponent 2.
    """
    error = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (error * (quality - logits.sigmoid()).square()).sum()


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the cross-entropy with the two bins around a target: $-(i + 1 - y) \log p_i - (y - i) \log p_{i+1}$.

    Args:
        logits: ``... x bins``, $p$ before the softmax.
        target: $y$, ``...``, in [0, ``bins - 1``).

    Returns:
        ``...``.

    Source: GFL (arXiv 2006.04388, implus/GFocal).
    """
    lower = target.long()
    beyond = target - lower
    near = logits.log_softmax(dim=-1).gather(-1, torch.stack([lower, lower + 1], dim=-1))
    return -torch.lerp(near[..., 0], near[..., 1], beyond)


def _center(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _nearest(objects: Tensor, centers: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the candidates of each object: indices of anchors, ``N x M x C``."""
    # the default, a matrix product, is off by pixels in float32
    distance = torch.cdist(objects, centers, compute_mode="donot_use_mm_for_euclid_dist")
    candidates, start = [], 0
    for level in torch.split(distance, list(counts), dim=2):
        candidates.append(level.topk(min(NEAREST, level.shape[2]), dim=2, largest=False).indices + start)
        start += level.shape[2]
    return torch.cat(candidates, dim=2)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    margins = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
    return margins.amin(dim=-1) > CENTER_MARGIN
