from __future__ import annotations

import yaml

from dfmsd.starting.draft import Choice, plain, to_yaml

DRAFT = {
    "data": {"root": Choice("a: b #c"), "flip": Choice(0.5, "half")},
    "stages": [{"teacher": Choice("runs/ü"), "epochs": Choice(3, "short")}, {"epochs": Choice(1)}],
    "cache": Choice(None, "none"),
    "jitter": Choice([0.75, 1.35]),
    "inherit": Choice(True),
}


def test_the_text_holds_the_values_and_their_reasons() -> None:
    text = to_yaml(DRAFT, ["first", "a\nbreak"])
    assert yaml.safe_load(text) == plain(DRAFT)
    lines = text.splitlines()
    assert lines[:2] == ["# first", "# a break"]
    assert "  flip: 0.5  # half" in lines
    assert lines[lines.index("stages:") + 1 :][:3] == ["  - teacher: runs/ü", "    epochs: 3  # short", "  - epochs: 1"]
    assert "cache: null  # none" in lines
