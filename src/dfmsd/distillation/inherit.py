"""Initialization of a student from its teacher's neck outputs and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch

from dfmsd.detectors.base import Detector
from dfmsd.detectors.torchvision.heads import anchors_of, arch_of
from dfmsd.detectors.torchvision.wrap import TorchvisionDetector
from dfmsd.detectors.transfer import class_layers, describe_new
from dfmsd.distillation.near import Obstacle
from dfmsd.errors import DfmsdError
from dfmsd.utils.classes import common_classes, listed

NECK_PARTS = ("backbone.fpn.layer_blocks", "backbone.fpn.extra_blocks")
"""The 3x3 output convolutions of the FPN, and those that derive further levels from its last one."""
BACKBONE = "backbone."
NONE = "none"
"""Shape, in messages, of a tensor that a detector lacks."""
Shapes = Mapping[str, str]


class Inherited(NamedTuple):
    """What a student has inherited."""

    parts: dict[str, list[str]]
    """Part -> names of the copied tensors in torchvision's state dict."""
    line: str
    """Says so, and which classes are new."""


@torch.no_grad()
def inherit(student: Detector, teacher: Detector, name: str) -> Inherited:
    """Copy the teacher's head into the student, and each of `NECK_PARTS` whose shapes all match.

    Everything that depends on the backbone keeps its own initialization: the backbone, the lateral convolutions of the
    neck, and further levels derived from a backbone's map, as in RetinaNet. So do, in the layers that predict classes,
    the rows of classes that the teacher lacks; those of the others are matched by `common_classes`.

    Args:
        student: changed in place.
        teacher: of the same family, with the same anchors and at least one of the student's classes.
        name: name of the teacher, for messages.

    Raises:
        DfmsdError: family, all classes, anchors or shapes of the heads differ; nothing is copied then.

    Source: the inheriting strategy of FGD and MGD (yzd-v/FGD, yzd-v/MGD). Differs from the official code, which copies
    the whole neck, as its students have the teacher's type of backbone.
    """
    found = obstacle(student, teacher, name)
    if found is not None:
        raise DfmsdError(f"inherit: {found.reason}; {found.remedy}, or inherit: false")
    target, source = student.model.state_dict(), teacher.model.state_dict()
    own, given = _shapes(student), _shapes(teacher)
    neck = {part: [key for key in {**target, **source} if key.startswith(f"{part}.")] for part in NECK_PARTS}
    matching = {part: keys for part, keys in neck.items() if keys and not _differing(keys, own, given)}
    copied = {**matching, "head": _head(own, given)}
    rows = class_layers(student, teacher, name)
    for key in chain.from_iterable(copied.values()):
        target[key].copy_(rows.tensors[key] if key in rows.tensors else source[key])
    new = f"; {describe_new(student, teacher, rows.new)}" if rows.new else ""
    return Inherited(copied, f"student starts with {', '.join(copied)} of {name}{new}")


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
            return inherit(student, teacher, name).line
        reasons.append(found.reason)
    return f"student inherits nothing: {'; '.join(reasons) or 'the first stage has no teacher'}"


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
    pairs = {
        "arch": (arch_of(student.model), arch_of(teacher.model), "set student.arch to the teacher's"),
        "anchors": (anchors_of(student.model), anchors_of(teacher.model), "set student.anchor_scale to the teacher's"),
    }
    if not common_classes(teacher.class_names, student.class_names):
        names = listed(student.class_names), listed(teacher.class_names)
        pairs["classes"] = (*names, "train the teacher on this data, or match their names with teacher_classes")
    for what, (of_student, of_teacher, remedy) in pairs.items():
        if of_student != of_teacher:
            return Obstacle(f"{what} differ: {of_student} (student), {of_teacher} ({name})", remedy)
    return None


def _other_shapes(student: TorchvisionDetector, teacher: TorchvisionDetector, name: str) -> Obstacle | None:
    own, given = _shapes(student), _shapes(teacher)
    differing = _differing(_head(own, given), own, given)
    if not differing:
        return None
    shapes = ", ".join(f"{key} {own.get(key, NONE)} and {given.get(key, NONE)}" for key in differing[:3])
    return Obstacle(
        f"the heads of the student and of {name} differ in {len(differing)} shape(s): {shapes}",
        "set student.fpn_channels and student.head_convs to the teacher's",
    )


def _head(first: Shapes, second: Shapes) -> list[str]:
    return [key for key in {**first, **second} if not key.startswith(BACKBONE)]


def _shapes(detector: Detector) -> dict[str, str]:
    """Return the shape of every tensor; of one with rows of classes, that of the rows of a single class."""
    of_classes = detector.class_rows() or {}
    rows = {key: len(indices[detector.class_names[0]]) for key, indices in of_classes.items()}
    return {
        key: "x".join(map(str, (rows.get(key, length), *others)))
        for key, (length, *others) in ((key, value.shape or (1,)) for key, value in detector.model.state_dict().items())
    }


def _differing(keys: Sequence[str], first: Shapes, second: Shapes) -> list[str]:
    return [key for key in keys if first.get(key) != second.get(key)]
