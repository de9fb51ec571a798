"""Durations in the unit that a reader would choose."""

from __future__ import annotations

HOUR = 3600.0
"""Seconds."""


def describe_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, to two digits or to the unit: ``45 s``, ``2.4 min``, ``36 h``.

    Args:
        seconds: the duration, at least 0.
    """
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    value, unit = (seconds / 60, "min") if round(seconds / 60) < 60 else (seconds / HOUR, "h")
    return f"{value:.1f} {unit}" if round(value, 1) < 10 else f"{value:.0f} {unit}"
