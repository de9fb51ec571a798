"""Initialization of a student from its teacher's neck outputs and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from dfmsd.detectors.base import Detector
from dfmsd.detectors.torchvision.heads import anchors_of, arch_of
from dfmsd.detectors.torchvision.wrap import TorchvisionDetector
from dfmsd.distillation.near import Obstacle
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
    found = obstacle(student, teacher, name)
    if found is not None:
        raise DfmsdError(f"inherit: {found.reason}; {found.remedy}, or inherit: false")
    target, source = student.model.state_dict(), teacher.model.state_dict()
    neck = {part: [key for key in {**target, **source} if key.startswith(f"{part}.")] for part in NECK_PARTS}
    matching = {part: keys for part, keys in neck.items() if keys and not _differing(keys, target, source)}
    copied = {**matching, "head": _head(target, source)}
    for key in chain.from_iterable(copied.values()):
        target[key].copy_(source[key])
    return copied


def inherit_first_fitting(student: Detector, teachers: Mapping[str, Detector]) -> str:
    """Let the student inherit from the first teacher that fits, if any does.

    Args:
        student: changed in place.
        teachers: by name.

    Returns:
        A line that says from which, or why from none.
    """
    reasons = []
    for name, teacher in teachers.items():
        found = obstacle(student, teacher, name)
        if found is None:
            return starts_with(inherit(student, teacher, name), name)
        reasons.append(found.reason)
    return f"student inherits nothing: {'; '.join(reasons) or 'the first stage has no teacher'}"


def starts_with(copied: Mapping[str, list[str]], name: str) -> str:
    """Say in one line what `inherit` has copied from the teacher of this name."""
    return f"student starts with {', '.join(copied)} of {name}"


def obstacle(student: Detector, teacher: Detector, name: str) -> Obstacle | None:
    """Return why a student cannot inherit; None if it can.

    Args:
        student: the student.
        teacher: the teacher.
        name: name of the teacher.
    """
    for detector in (student, teacher):
        if not isinstance(detector, TorchvisionDetector):
            unknown = f"the neck and head of {type(detector).__name__} are unknown"
            return Obstacle(unknown, "use torchvision detectors for both")
    assert isinstance(student, TorchvisionDetector)
    assert isinstance(teacher, TorchvisionDetector)
    return _difference(student, teacher, name) or _other_shapes(student, teacher, name)


def _difference(student: TorchvisionDetector, teacher: TorchvisionDetector, name: str) -> Obstacle | None:
    remedies = {
        "arch": (arch_of(student.model), arch_of(teacher.model), "set student.arch to the teacher's"),
        "classes": (_classes(student), _classes(teacher), "train the teacher on this data"),
        "anchors": (anchors_of(student.model), anchors_of(teacher.model), "set student.anchor_scale to the teacher's"),
    }
    for what, (of_student, of_teacher, remedy) in remedies.items():
        if of_student != of_teacher:
            return Obstacle(f"{what} differ: {of_student} (student), {of_teacher} ({name})", remedy)
    return None


def _other_shapes(student: TorchvisionDetector, teacher: TorchvisionDetector, name: str) -> Obstacle | None:
    target, source = student.model.state_dict(), teacher.model.state_dict()
    differing = _differing(_head(target, source), target, source)
    if not differing:
        return None
    shapes = ", ".join(f"{key} {_shape(target, key)} and {_shape(source, key)}" for key in differing[:3])
    return Obstacle(
        f"the heads of the student and of {name} differ in {len(differing)} shape(s): {shapes}",
        "set student.fpn_channels and student.head_convs to the teacher's",
    )


def _head(target: Weights, source: Weights) -> list[str]:
    return [key for key in {**target, **source} if not key.startswith(BACKBONE)]


def _classes(detector: TorchvisionDetector) -> str:
    """Return the class names, each with its label in the head."""
    return ", ".join(
        f"{label} {name}" for name, label in zip(detector.class_names, detector.label_ids.tolist(), strict=True)
    )


def _differing(keys: Sequence[str], first: Weights, second: Weights) -> list[str]:
    return [key for key in keys if _shape(first, key) != _shape(second, key)]


def _shape(weights: Weights, key: str) -> str:
    return "x".join(map(str, weights[key].shape)) if key in weights else "none"
