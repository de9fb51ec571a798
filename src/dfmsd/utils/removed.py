"""Options of earlier versions, of which one value is left: a file may still state that value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfmsd.errors import DfmsdError


def drop_removed(values: Mapping[str, Any], removed: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Drop the options that were removed.

    Args:
        values: option -> value.
        removed: removed option -> the value that now always applies.
        prefix: of the options' names in messages, such as ``loss.``.

    Raises:
        DfmsdError: one of them has another value.
    """
    for key, value in removed.items():
        if values.get(key, value) != value:
            raise DfmsdError(f"{prefix}{key}: {values[key]!r} was removed; leave {key} out, which means {value!r}")
    return {key: value for key, value in values.items() if key not in removed}
