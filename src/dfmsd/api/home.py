"""``~/`` in the arguments of the API, which Python does not expand as a shell does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dfmsd.utils.coerce import expand_home

P = ParamSpec("P")
R = TypeVar("R")


def expands_home(function: Callable[P, R]) -> Callable[P, R]:
    """Write out ``~/`` in the paths and references that a function is called with, also in lists and tuples of them."""

    @functools.wraps(function)
    def call(*arguments: P.args, **settings: P.kwargs) -> R:
        return function(*map(_expanded, arguments), **{name: _expanded(value) for name, value in settings.items()})

    return call


def _expanded(value: Any) -> Any:
    if isinstance(value, str):
        return expand_home(value)
    if isinstance(value, Path):
        return value.expanduser()
    return type(value)(map(_expanded, value)) if type(value) in (list, tuple) else value
