"""Lazy imports of a package's public names: torch, torchvision and Lightning take seconds to import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_imports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Import the names that a package imports under ``if TYPE_CHECKING:`` on first use.

    The block is read from the source of the package, so that type checkers, readers and this function share one list
    (``lazy_loader.attach_stub`` does the same with a separate stub file)::

        if TYPE_CHECKING:
            from dfmsd.data.split import DetectionSplit
        else:
            __getattr__, __dir__ = lazy_imports(__name__)

    Args:
        package: ``__name__`` of the package.

    Returns:
        The ``__getattr__`` and ``__dir__`` of the package.
    """
    modules = _type_checking_imports(package)

    def getattr_(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if modules[name] == package:
            return import_module(f"{package}.{name}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getattr_, dir_


def _type_checking_imports(package: str) -> dict[str, str]:
    """Map each name imported under ``if TYPE_CHECKING:`` to its module."""
    spec = find_spec(package)
    source = spec.loader.get_source(package) if spec and spec.loader else None  # type: ignore[attr-defined]
    if source is None:
        raise ImportError(f"{package}: the source of its __init__.py is missing; reinstall dfmsd")
    conditions = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    blocks = (node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING")
    return {
        alias.name: str(node.module)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
