"""Optional dependencies: packages that an extra of dfmsd installs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dfmsd.errors import DfmsdError


def import_extra(feature: str, package: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        feature: What needs the package, in the user's terms.
        package: Name of the package, as imported.
        extra: Extra of dfmsd that installs it.

    Raises:
        DfmsdError: The package or one of its own dependencies is missing.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise DfmsdError(f"{feature} needs {package} ({error}): pip install 'dfmsd[{extra}]'") from error


def check_extra(feature: str, packages: Sequence[str], extra: str) -> None:
    """Check that optional packages are installed, without importing them, which may be slow.

    Args:
        feature: What needs the packages, in the user's terms.
        packages: Names of the packages, as imported.
        extra: Extra of dfmsd that installs them.

    Raises:
        DfmsdError: A package is missing; the message names all that are.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise DfmsdError(f"{feature} needs {', '.join(missing)}: pip install 'dfmsd[{extra}]'")


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a plain folder of that name has no origin
