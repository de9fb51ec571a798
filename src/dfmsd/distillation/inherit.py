"""Initialization of a student from its teacher's neck outputs and head."""

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
"""The 3x3 output convolutions of the FPN, and those that derive further levels from its last one."""
BACKBONE = "backbone."
Weights = Mapping[str, Tensor]


@torch.no_grad()
def inherit(student: Detector, teacher: Detector, name: str) -> dict[str, list[str]]:
    """Copy the teacher's head into the student, and each of `NECK_PARTS` whose shapes all match.

    Everything that depends on the backbone keeps its own initialization: the backbone, the lateral convolutions of the
    neck, and further levels derived from a backbone's map, as in RetinaNet.

    Args:
        student: changed in place.
        teacher: of the same family, with the same classes in the same order and the same anchors.
        name: name of the teacher, for messages.

    Returns:
        Part -> names of the copied tensors in torchvision's state dict.

    Raises:
        DfmsdError: family, classes, anchors or shapes of the heads differ; nothing is copied then.

    Source: the inheriting strategy of FGD and MGD (yzd-v/FGD, yzd-v/MGD). Differs from the official code, which copies
    the whole neck, as its students have the teacher's type of backbone.
    """
    student, teacher = _as_torchvision(student), _as_torchvision(teacher)
    _check_match(student, teacher, name)
    target, source = student.model.state_dict(), teacher.model.state_dict()
    head = [key for key in {**target, **source} if not key.startswith(BACKBONE)]
    differing = _differing(head, target, source)
    if differing:
        shapes = ", ".join(f"{key} {_shape(target, key)} and {_shape(source, key)}" for key in differing[:3])
        raise DfmsdError(
            f"inherit: the heads of the student and of {name} differ in {len(differing)} shape(s): {shapes}; set "
            "student.fpn_channels and student.head_convs to the teacher's, or inherit: false"
        )
    neck = {part: [key for key in {**target, **source} if key.startswith(f"{part}.")] for part in NECK_PARTS}
    matching = {part: keys for part, keys in neck.items() if keys and not _differing(keys, target, source)}
    copied = {**matching, "head": head}
    for key in chain.from_iterable(copied.values()):
        target[key].copy_(source[key])
    return copied


def _as_torchvision(detector: Detector) -> TorchvisionDetector:
    if not isinstance(detector, TorchvisionDetector):
        raise DfmsdError(
            f"inherit: the neck and head of {type(detector).__name__} are unknown; set inherit: false, or use "
            "torchvision detectors for both"
        )
    return detector


def _check_match(student: TorchvisionDetector, teacher: TorchvisionDetector, name: str) -> None:
    remedies = {
        "arch": (arch_of(student.model), arch_of(teacher.model), "set student.arch to the teacher's"),
        "classes": (_classes(student), _classes(teacher), "train the teacher on this data"),
        "anchors": (anchors_of(student.model), anchors_of(teacher.model), "set student.anchor_scale to the teacher's"),
    }
    for what, (of_student, of_teacher, remedy) in remedies.items():
        if of_student != of_teacher:
            raise DfmsdError(
                f"inherit: {what} differ: {of_student} (student), {of_teacher} ({name}); {remedy}, or inherit: false"
            )


def _classes(detector: TorchvisionDetector) -> str:
    """Return the class names, each with its label in the head."""
    return ", ".join(
        f"{label} {name}" for name, label in zip(detector.class_names, detector.label_ids.tolist(), strict=True)
    )


def _differing(keys: Sequence[str], first: Weights, second: Weights) -> list[str]:
    return [key for key in keys if _shape(first, key) != _shape(second, key)]


def _shape(weights: Weights, key: str) -> str:
    return "x".join(map(str, weights[key].shape)) if key in weights else "none"
