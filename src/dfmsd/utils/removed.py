"""Options of earlier versions, of which one value is left: a file may still state that value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dfmsd.errors import DfmsdError


class Replaced(NamedTuple):
    """An option that another one has replaced."""

    value: Any
    """The value that applies where the other option is left out."""
    successor: str
    """The other option with its value, such as ``compile: true``."""


def drop_removed(values: Mapping[str, Any], removed: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Drop the options that were removed.

    Args:
        values: option -> value.
        removed: removed option -> the value that now always applies, or `Replaced`.
        prefix: of the options' names in messages, such as ``loss.``.

    Raises:
        DfmsdError: one of them has another value.
    """
    for key, rule in removed.items():
        value = rule.value if isinstance(rule, Replaced) else rule
        if values.get(key, value) != value:
            instead = f"write {rule.successor} instead, or " if isinstance(rule, Replaced) else ""
            raise DfmsdError(
                f"{prefix}{key}: {values[key]!r} was removed; {instead}leave {key} out, which means {value!r}"
            )
    return {key: value for key, value in values.items() if key not in removed}
