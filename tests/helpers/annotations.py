"""Edits of a tiny data set's annotation files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Edit = Callable[[dict[str, Any]], object]


def edit(root: Path, change: Edit, split: str = "train") -> None:
    file = root / "annotations" / f"instances_{split}.json"
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def change(key: str, **values: object) -> Edit:
    return lambda raw: raw[key][0].update(values)
