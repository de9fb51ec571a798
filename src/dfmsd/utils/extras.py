"""Packages that come with an extra of dfmsd: imported where they are needed, refused in one line where they lack."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dfmsd.errors import DfmsdError


def import_extra(what: str, package: str, extra: str) -> Any:
    """Import a package.

    Args:
        what: needs it, as the user calls it.
        package: its name, as it is imported.
        extra: of dfmsd, which installs it.

    Raises:
        DfmsdError: it is not there, or lacks something itself.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise DfmsdError(f"{what} needs {package} ({error}): pip install 'dfmsd[{extra}]'") from error


def check_extra(what: str, packages: Sequence[str], extra: str) -> None:
    """Refuse packages that are missing, without the time that their import takes.

    Args:
        what: needs them, as the user calls it.
        packages: their names, as they are imported.
        extra: of dfmsd, which installs them.

    Raises:
        DfmsdError: names those that are missing.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise DfmsdError(f"{what} needs {', '.join(missing)}: pip install 'dfmsd[{extra}]'")


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin
