"""Weights of a trained detector in one of the same architecture for other classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfmsd.detectors.base import REST, Detector
from dfmsd.detectors.statedict import StateDict, load_strictly
from dfmsd.errors import DfmsdError, listed
from dfmsd.utils.classes import common_classes

COUNTER = "num_batches_tracked"
"""End of the name of a buffer that only some kinds of batch normalization have, and that changes no result."""
LISTED = 3
"""Classes and layers that a line names."""


def keep_weights(student: Detector, trained: Detector, name: str, new: Collection[str] = ()) -> str:
    """Copy all weights of a trained detector; in the layers that depend on the classes, those of common classes.

    Args:
        student: Changed in place; its other rows keep their initial values.
        trained: Of the same architecture.
        name: Source of the weights, for messages.
        new: Keys that keep their initial values, such as layers whose width follows from the number of classes.

    Returns:
        A line that says what was kept and what is new.

    Raises:
        DfmsdError: The weights do not fit, or it is not known which of them belong to which class.
    """
    target, source = student.model.state_dict(), trained.model.state_dict()
    rows = class_layers(student, trained, name, new)
    counters = {key: value for key, value in target.items() if key.endswith(COUNTER)}
    load_strictly(student.model, {**counters, **source, **rows.tensors}, name)
    _same_epsilon(student.model, trained.model)
    total = len(target) - len(counters)
    if not rows.new:
        return f"kept all {total} tensors of {name}"
    kept = f"kept {total - len(rows.new)} of {total} tensors of {name}"
    return f"{kept}; {describe_new(student, trained, rows.new)}"


class ClassLayers(NamedTuple):
    """Layers that depend on the classes, with the rows of common ones."""

    tensors: StateDict
    """By their keys."""
    new: list[str]
    """Keys of those with a row that is new."""


def class_layers(student: Detector, trained: Detector, name: str, new: Collection[str] = ()) -> ClassLayers:
    """Return the student's layers that depend on the classes, with a trained detector's rows of the common ones.

    Args:
        student: Not changed; the rows of its other classes are its own.
        trained: Its layers differ from the student's only in their classes.
        name: Source of the weights, for messages.
        new: Keys that keep the student's values.

    Raises:
        DfmsdError: It is not known which rows belong to which class, and the classes or their order differ.
    """
    own, given = student.class_rows(), trained.class_rows()
    if own is None or given is None:
        if student.class_names == trained.class_names:
            return ClassLayers({}, [])
        raise DfmsdError(
            f"{name}: the layers of {type(trained).__name__} that depend on its classes are unknown, so it can only"
            " start a student with the same classes in the same order"
        )
    target, source = student.model.state_dict(), trained.model.state_dict()
    common = common_classes(trained.class_names, student.class_names)
    same = {student.class_names[label]: trained.class_names[old] for old, label in common.items()} | {REST: REST}
    copied = ClassLayers({key: target[key] for key in new}, list(new))
    for key, rows in own.items():
        if key in new:
            continue
        tensor = target[key].clone()
        kept = {label: rows[label] for label in rows if label in same and same[label] in given[key]}
        for label, indices in kept.items():
            tensor[indices] = source[key][given[key][same[label]]]
        copied.tensors[key] = tensor
        if len(kept) < len(rows):
            copied.new.append(key)
    return copied


def describe_new(student: Detector, trained: Detector, new: Sequence[str]) -> str:
    """Say which classes' rows a student keeps from a trained detector, and which are new.

    Args:
        student: The student.
        trained: The trained detector.
        new: As in `ClassLayers`.
    """
    kept = set(common_classes(trained.class_names, student.class_names).values())
    classes: dict[str, list[str]] = {"kept": [], "new": []}
    for label, class_name in enumerate(student.class_names):
        classes["kept" if label in kept else "new"].append(class_name)
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in new))
    rows = ", ".join(f"{what} {listed(names, LISTED)}" for what, names in classes.items() if names)
    return (
        f"classes differ ({len(trained.class_names)} -> {len(student.class_names)}), so in {listed(layers, LISTED)}:"
        f" {rows}"
    )


@torch.no_grad()
def _same_epsilon(student: nn.Module, trained: nn.Module) -> None:
    """Correct variances where the trained normalization adds another epsilon to them, as torchvision's frozen one."""
    for path, layer in student.named_modules():
        variance, own = getattr(layer, "running_var", None), getattr(layer, "eps", None)
        other = getattr(trained.get_submodule(path), "eps", None)
        if isinstance(variance, Tensor) and isinstance(own, float) and isinstance(other, float) and own != other:
            variance.add_(other - own).clamp_(min=0)
