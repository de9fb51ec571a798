"""A student that starts with its teacher's neck outputs and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from dfmsd.detectors.base import Detector
from dfmsd.detectors.torchvision.heads import anchors_of, arch_of
from dfmsd.detectors.torchvision.wrap import TorchvisionDetector
from dfmsd.errors import DfmsdError

NECK_PARTS = ("backbone.fpn.layer_blocks", "backbone.fpn.extra_blocks")
"""The 3x3 convolutions that give the levels, and those that make further levels of the last one."""
BACKBONE = "backbone."
Weights = Mapping[str, Tensor]


@torch.no_grad()
def inherit(student: Detector, teacher: Detector, name: str) -> dict[str, list[str]]:
    """Copy the teacher's head, and those of `NECK_PARTS` that agree in shape as a whole, into the student.

    What depends on the backbone keeps its own start: the backbone, the lateral convolutions of the neck, and further
    levels that are made of a backbone's map, as RetinaNet's are.

    Args:
        student: changed in place.
        teacher: of the same family, with the same classes in the same order and the same anchors.
        name: of the teacher, for messages.

    Returns:
        Part -> names of the tensors that were copied, in torchvision's state dict.

    Raises:
        DfmsdError: a difference in family, classes, anchors or the shapes of the heads; nothing is copied then.

    Source: the inheriting strategy of FGD and MGD (yzd-v/FGD, yzd-v/MGD), which differ in copying all of the neck,
    since their students have the teacher's kind of backbone.
    """
    own, theirs = (_torchvision(detector) for detector in (student, teacher))
    _check(own, theirs, name)
    mine, given = own.model.state_dict(), theirs.model.state_dict()
    head = [key for key in {**mine, **given} if not key.startswith(BACKBONE)]
    odd = _differing(head, mine, given)
    if odd:
        shapes = ", ".join(f"{key} {_shape(mine, key)} and {_shape(given, key)}" for key in odd[:3])
        raise DfmsdError(
            f"inherit: the heads of the student and of {name} differ in {len(odd)} shape(s): {shapes}; set "
            "student.fpn_channels and student.head_convs to the teacher's, or inherit: false"
        )
    neck = {part: [key for key in {**mine, **given} if key.startswith(f"{part}.")] for part in NECK_PARTS}
    copied = {part: keys for part, keys in neck.items() if keys and not _differing(keys, mine, given)} | {"head": head}
    for key in chain.from_iterable(copied.values()):
        mine[key].copy_(given[key])
    return copied


def _torchvision(detector: Detector) -> TorchvisionDetector:
    if not isinstance(detector, TorchvisionDetector):
        raise DfmsdError(
            f"inherit: {type(detector).__name__} has no known neck and head; set inherit: false, or take detectors of "
            "torchvision for both"
        )
    return detector


def _check(student: TorchvisionDetector, teacher: TorchvisionDetector, name: str) -> None:
    remedies = {
        "arch": (arch_of(student.model), arch_of(teacher.model), "set student.arch to the teacher's"),
        "classes": (_classes(student), _classes(teacher), "train the teacher on this data"),
        "anchors": (anchors_of(student.model), anchors_of(teacher.model), "set student.anchor_scale to the teacher's"),
    }
    for what, (own, theirs, remedy) in remedies.items():
        if own != theirs:
            raise DfmsdError(
                f"inherit: {what} differ: {own} of the student, {theirs} of {name}; {remedy}, or inherit: false"
            )


def _classes(detector: TorchvisionDetector) -> str:
    """Names with the label that each has in the head."""
    return ", ".join(
        f"{label} {name}" for name, label in zip(detector.class_names, detector.label_ids.tolist(), strict=True)
    )


def _differing(keys: Sequence[str], first: Weights, second: Weights) -> list[str]:
    return [key for key in keys if _shape(first, key) != _shape(second, key)]


def _shape(weights: Weights, key: str) -> str:
    return "x".join(map(str, weights[key].shape)) if key in weights else "none"
