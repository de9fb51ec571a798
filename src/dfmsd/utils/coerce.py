"""Conversion of dataclass fields to their annotated types, and checks of their ranges."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from dfmsd.errors import DfmsdError, suggest

AUTO: Final = "auto"
"""Value of an option that leaves the choice to the run."""
NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", dict: "a mapping"}
"""Plain types, for messages."""
HOME = re.compile(r"(?<![^:,=])~/")
"""The home directory in a path or a reference: at its start, or behind a prefix or a separator."""


def coerce_fields(config: Any, prefix: str = "") -> None:
    """Convert every field of a dataclass instance to its annotated type.

    Paths become strings, in which ``~/`` is the home directory, NumPy scalars and arrays Python numbers and lists,
    integers floats where a float is annotated, sequences lists or tuples as annotated, and mappings dataclasses. Frozen
    dataclasses are modified, too.

    Args:
        config: Dataclass instance, modified in place.
        prefix: Prefix of the field names in messages, such as ``optim.``.

    Raises:
        DfmsdError: A value has another type, or a mapping an unknown key.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value = coerce(getattr(config, field.name), kinds[field.name], f"{prefix}{field.name}")
        object.__setattr__(config, field.name, value)


def coerce(value: Any, kind: Any, where: str) -> Any:
    """Convert a value to a type.

    Args:
        value: Value to convert.
        kind: Plain type, dataclass, or a ``Literal``, ``list``, ``tuple``, ``dict`` or union of these.
        where: Name of the value, for messages.

    Raises:
        DfmsdError: The value does not fit the type.
    """
    value = expand_home(value)
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if type(value) is int and str(value) in get_args(kind):  # YAML reads `precision: 32` as a number
        return str(value)
    for option in _options(kind):
        if is_dataclass(option) and isinstance(value, Mapping):
            return build(option, value, where)
        if get_origin(option) is list and _is_sequence(value):
            (item,) = get_args(option)
            return [coerce(part, item, f"{where}.{index}") for index, part in enumerate(value)]
        if get_origin(option) is tuple:
            if _is_sequence(value) and len(value) == len(get_args(option)):
                return tuple(coerce(part, item, where) for part, item in zip(value, get_args(option), strict=True))
        elif _fits(value, option):
            return float(value) if option is float else value
    raise DfmsdError(f"{where} must be {' or '.join(_describe(option) for option in _options(kind))}, got {value!r}")


def expand_home(value: Any) -> Any:
    """Return a path, or a reference with paths such as ``hf:~/model``, as a string in which ``~/`` is written out.

    Args:
        value: Path, string, or anything else, which is returned as it is.
    """
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    return HOME.sub(lambda _: os.path.expanduser("~/"), value) if isinstance(value, str) else value


def build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from a mapping.

    Args:
        kind: Dataclass to build.
        values: Field name -> value.
        where: Name of the mapping, for messages.

    Raises:
        DfmsdError: A key is unknown or missing; the message suggests the closest one.
    """
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            hint = suggest(str(key).lower(), known, f"known are {', '.join(known)}")
            raise DfmsdError(f"{where}.{key} is not known; {hint}")
    kinds = get_type_hints(kind)
    values = {key: coerce(value, kinds[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a required field is missing
        raise DfmsdError(f"{where}: {error}") from error


def check_range(config: Any, names: Sequence[str], prefix: str = "", *, minimum: int) -> None:
    """Check that fields are finite numbers of at least ``minimum``, or None.

    Raises:
        DfmsdError: A value is out of range.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < math.inf:
            raise DfmsdError(f"{prefix}{name} must be at least {minimum}, got {value}")


def check_positive(config: Any, names: Sequence[str], prefix: str = "") -> None:
    """Check that fields are finite numbers above 0.

    Raises:
        DfmsdError: A value is out of range.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise DfmsdError(f"{prefix}{name} must be above 0, got {value}")


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


def _describe(kind: Any) -> str:
    if kind is NoneType:
        return "null"
    origin = get_origin(kind) or kind
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if origin is tuple:
        return f"a list of {len(get_args(kind))} values"
    if origin is list:
        return "a list"
    return NAMES.get(origin, f"a {origin.__name__}")
