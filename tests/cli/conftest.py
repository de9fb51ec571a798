"""Configs of the commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.helpers.command import STUDENT, Command


@pytest.fixture
def content(tiny_root: Path, tiny_teachers: tuple[str, str]) -> dict[str, Any]:
    """Return the content of a config with two stages."""
    return {
        "data": {"root": str(tiny_root), "image_size": 64, "batch_size": 4},
        "student": STUDENT,
        "stages": [{"teacher": tiny_teachers[0], "epochs": 1}, {"teacher": tiny_teachers[1], "epochs": 1}],
        "optim": {"warmup": 1},
        "out": "run",
    }


@pytest.fixture
def config(dfmsd: Command, content: dict[str, Any]) -> str:
    return dfmsd.write("distill.yaml", content)


@pytest.fixture
def comparison(dfmsd: Command, content: dict[str, Any], tiny_teachers: tuple[str, str]) -> str:
    shared = {key: content[key] for key in ("data", "student", "optim")}
    pairs = {"both": list(tiny_teachers)}
    return dfmsd.write("compare.yaml", {**shared, "pairs": pairs, "methods": ["pkd"], "epochs": 2, "out": "table"})


@pytest.fixture
def training(dfmsd: Command, content: dict[str, Any]) -> str:
    """Write a config of supervised training: one epoch of two steps."""
    return dfmsd.write(
        "train.yaml", {"model": STUDENT, "epochs": 1, **{k: content[k] for k in ("data", "optim", "out")}}
    )
