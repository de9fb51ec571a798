"""Weights of a trained detector in one of the same architecture for other classes."""

from __future__ import annotations

from collections.abc import Collection
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
    rows = _class_layers(student, trained, target, source, name, new)
    counters = {key: value for key, value in target.items() if key.endswith(COUNTER)}
    load_strictly(student.model, {**counters, **source, **rows.tensors}, name)
    _same_epsilon(student.model, trained.model)
    return _line(student, trained, name, len(target) - len(counters), rows.new)


class _ClassLayers(NamedTuple):
    tensors: StateDict
    """Those with rows of classes."""
    new: list[str]
    """Names of those with a row that is new."""


def _class_layers(
    student: Detector, trained: Detector, target: StateDict, source: StateDict, name: str, new: Collection[str]
) -> _ClassLayers:
    own, given = student.class_rows(), trained.class_rows()
    if own is None or given is None:
        if student.class_names == trained.class_names:
            return _ClassLayers({}, [])
        raise DfmsdError(
            f"{name}: the layers of {type(trained).__name__} that depend on its classes are unknown, so it can only"
            " start a student with the same classes in the same order"
        )
    common = common_classes(trained.class_names, student.class_names)
    same = {student.class_names[label]: trained.class_names[old] for old, label in common.items()} | {REST: REST}
    copied = _ClassLayers({key: target[key] for key in new}, list(new))
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


@torch.no_grad()
def _same_epsilon(student: nn.Module, trained: nn.Module) -> None:
    """Correct variances where the trained normalization adds another epsilon to them, as torchvision's frozen one."""
    for path, layer in student.named_modules():
        variance, own = getattr(layer, "running_var", None), getattr(layer, "eps", None)
        other = getattr(trained.get_submodule(path), "eps", None)
        if isinstance(variance, Tensor) and isinstance(own, float) and isinstance(other, float) and own != other:
            variance.add_(other - own).clamp_(min=0)


def _line(student: Detector, trained: Detector, name: str, total: int, new: list[str]) -> str:
    if not new:
        return f"kept all {total} tensors of {name}"
    kept = set(common_classes(trained.class_names, student.class_names).values())
    classes: dict[str, list[str]] = {"kept": [], "new": []}
    for label, class_name in enumerate(student.class_names):
        classes["kept" if label in kept else "new"].append(class_name)
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in new))
    rows = ", ".join(f"{what} {listed(names, LISTED)}" for what, names in classes.items() if names)
    return (
        f"kept {total - len(new)} of {total} tensors of {name}; classes differ ({len(trained.class_names)} ->"
        f" {len(student.class_names)}), so in {listed(layers, LISTED)}: {rows}"
    )
