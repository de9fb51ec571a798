"""Targets whose boxes change; scores, if there are any, stay with their boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dfmsd.types import Target


def moved(target: Target, boxes: Tensor) -> Target:
    """Return a target with other boxes, ``M x 4``, of the same objects."""
    return {**target, "boxes": boxes}


def kept(target: Target, keep: Tensor) -> Target:
    """Return the part of a target whose objects are kept.

    Args:
        target: The target.
        keep: Bool, ``M``.
    """
    part = Target(boxes=target["boxes"][keep], labels=target["labels"][keep])
    if "scores" in target:
        part["scores"] = target["scores"][keep]
    return part


def joined(targets: Sequence[Target]) -> Target:
    """Return all objects of several targets; where only some have scores, those of the others are 1."""
    whole = Target(
        boxes=torch.cat([target["boxes"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]),
    )
    if any("scores" in target for target in targets):
        whole["scores"] = torch.cat([scores_of(target) for target in targets])
    return whole


def scores_of(target: Target) -> Tensor:
    """Return the scores of a target, 1 without any."""
    return target["scores"] if "scores" in target else torch.ones(len(target["labels"]))
