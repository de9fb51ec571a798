"""Fuzz the readers: ``python -m tests.fuzz.annotations NEW CORPUS -max_total_time=60`` (``make fuzz``).

An input that starts like JSON, XML, ``#yaml`` or ``#rows`` is a whole file; any other encodes which value of a valid
JSON file to replace by what.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["dfmsd.data.formats", "dfmsd.data.split", "dfmsd.data.imagecheck", "json"]):
    from tests.fuzz.target import changed, check, make_root

WORDS = ("0.png", "../0.png", "/etc/hostname", "deep", "a\0b", "", "disc", ".", "deep/../0.png")
KEYS = ("id", "name", "bbox")


def value(data: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    """Draw a JSON value, with a preference for relevant ones."""
    draw = (
        lambda: None,
        lambda: data.ConsumeBool(),
        lambda: data.ConsumeIntInRange(-2, 9),
        lambda: data.ConsumeInt(9),
        lambda: 10 ** data.ConsumeIntInRange(0, 400),
        lambda: data.ConsumeFloat(),
        lambda: data.ConsumeUnicode(20),
        lambda: WORDS[data.ConsumeIntInRange(0, len(WORDS) - 1)],
        lambda: [value(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 5))],
        lambda: {key: value(data, depth + 1) for key in KEYS if data.ConsumeBool()},
    )
    return draw[data.ConsumeIntInRange(0, len(draw) - (3 if depth > 2 else 1))]()


def test_one_input(content: bytes) -> None:
    """Check one input."""
    if content[:1] in (b"{", b"[", b"<") or content[:5] in (b"#yaml", b"#rows"):
        check(content, ROOT)
        return
    data = atheris.FuzzedDataProvider(content)
    drawn = value(data)
    check(changed(lambda limit: data.ConsumeIntInRange(0, limit - 1), drawn), ROOT)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        ROOT = make_root(Path(folder))
        logging.getLogger("dfmsd").setLevel(logging.ERROR)
        atheris.Setup(sys.argv, test_one_input)
        atheris.Fuzz()
