"""Durations are told in the unit that a reader would choose."""

from __future__ import annotations

import pytest

from dfmsd.utils.durations import describe_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (45.2, "45 s"),
        (59.6, "1.0 min"),
        (144, "2.4 min"),
        (597.1, "10 min"),
        (45 * 60, "45 min"),
        (3599, "1.0 h"),
        (7.2 * 3600, "7.2 h"),
        (36.4 * 3600, "36 h"),
        (1200 * 3600, "1200 h"),
    ],
)
def test_the_unit_fits_the_length(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text
