"""Classification losses of FCOS and RetinaNet for targets between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import Matcher

ALPHA = 0.25
"""Weight of a target of 1; one of 0 has 1 - `ALPHA`, as in torchvision."""


def soft_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the focal loss $\alpha_y (y - \sigma(x))^2 \, BCE(x, y)$, elementwise; its minimum is at $\sigma(x) = y$.

    For targets of 0 and 1 it is torchvision's ``sigmoid_focal_loss``.

    Args:
        logits: $x$, of any shape.
        target: $y$ in 0..1, of the same shape.

    Source: the quality focal loss of GFL (arXiv 2006.04388), with the class weights of RetinaNet (arXiv 1708.02002).
    """
    error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = ALPHA * target + (1 - ALPHA) * (1 - target)
    return weight * (target - logits.sigmoid()).square() * error


def soft_classification(
    model: FCOS | RetinaNet, targets: Sequence[dict[str, Tensor]], logits: Tensor, matched: Sequence[Tensor]
) -> Tensor:
    """Return the classification loss of torchvision's FCOS or RetinaNet, with the scores of objects as class targets.

    Args:
        model: Decides how the sum over anchors is divided.
        targets: ``labels`` and ``scores`` of each image.
        logits: ``N x A x K``.
        matched: Index of each anchor's object in each image, ``A``, below 0 for none.
    """
    goal = torch.zeros_like(logits)
    for of_image, target, index in zip(goal, targets, matched, strict=True):
        positive = index >= 0
        objects = index[positive]
        of_image[positive, target["labels"][objects]] = target["scores"][objects].to(goal.dtype)
    assigned = torch.stack(list(matched))
    loss = soft_focal_loss(logits, goal).sum(dim=2)
    positives = (assigned >= 0).sum(dim=1)
    if isinstance(model, FCOS):
        return loss.sum() / positives.sum().clamp(min=1)
    valid: Tensor = assigned != Matcher.BETWEEN_THRESHOLDS
    return ((loss * valid).sum(dim=1) / positives.clamp(min=1)).mean()
