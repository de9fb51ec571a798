"""Dotted paths to the feature maps of a model, through its modules and their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import Tensor, nn

from dfmsd.detectors.hooks import Call, is_compiled, unwrap
from dfmsd.errors import DfmsdError


class FeaturePath(NamedTuple):
    """Location of a feature map in a model."""

    path: str
    """The path that the caller passed."""
    module: str
    """Path of the module; empty for the whole model."""
    keys: tuple[str, ...]
    """Keys that lead from its output to the map."""


def find_feature(root: nn.Module, path: str) -> FeaturePath:
    """Follow a path through submodules as far as they exist; the rest are keys into the last one's output."""
    names, module, depth = path.split("."), root, 0
    for name in names:
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            break
        module, depth = child, depth + 1
    return FeaturePath(path, ".".join(names[:depth]), tuple(names[depth:]))


def read_map(path: FeaturePath, calls: Mapping[str, list[Call]], model: nn.Module) -> Tensor:
    """Return the feature map at a path, ``N x C x H x W``.

    Args:
        path: Where it is.
        calls: What the modules returned in one forward pass, by path.
        model: The model, for messages.

    Raises:
        DfmsdError: The module did not run once, or there is no map.
    """
    module_calls = calls[path.module]
    if len(module_calls) != 1:
        count = "did not run" if not module_calls else "ran more than once"
        hint = " (a compiled module must be wrapped before its first call)" if is_compiled(model) else ""
        raise refused(path, model, f"{count} in one forward pass, expected once{hint}")
    value, parent = module_calls[0].output, path.module
    for key in path.keys:
        items = _items(value)
        if key not in items:
            names = [f"{parent}.{item}".lstrip(".") for item in items]
            raise refused(path, model, "is neither a module nor an item of a module's output", names)
        value, parent = items[key], f"{parent}.{key}"
    if not isinstance(value, Tensor) or value.ndim != 4:
        names = [f"{path.path}.{item}" for item in _items(value)]
        raise refused(path, model, f"is {describe_value(value)}, not a map N x C x H x W", names)
    return value


def refused(path: FeaturePath, model: nn.Module, problem: str, items: Sequence[str] = ()) -> DfmsdError:
    """Return the error about a path, with the names that are nearest to it.

    Args:
        path: The path.
        model: Whose modules are suggested.
        problem: What is wrong with the path.
        items: Further names to suggest.
    """
    root = unwrap(model)
    names = [*items, *(name for name, _ in root.named_modules() if name not in ("", path.path))]
    nearest = ", ".join(get_close_matches(path.path, names, n=4, cutoff=0.0))
    return DfmsdError(f"features: {path.path!r} of {type(root).__name__} {problem}; nearest names: {nearest or 'none'}")


def describe_value(value: object) -> str:
    """Describe a tensor by its shape, a container by its items, and anything else by its type."""
    if isinstance(value, Tensor):
        return f"a tensor {' x '.join(map(str, value.shape)) or 'without dimensions'}"
    items = ", ".join(list(_items(value))[:8])
    return f"a {type(value).__name__}" + (f" of {items}" if items else "")


def _items(value: object) -> dict[str, Any]:
    """Return the items of a container by name; empty for anything else."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return {str(index): item for index, item in enumerate(value)} if isinstance(value, list | tuple) else {}
