from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.fixtures import STUDENT

from dfmsd.comparison.config import CompareConfig
from dfmsd.data import DataConfig
from dfmsd.engine.optim import OptimConfig


@pytest.fixture(scope="session")
def compare_config(tiny_root: Path, tiny_teachers: tuple[str, str]) -> Callable[..., CompareConfig]:
    """Return a function that builds configs of two epochs of two steps, with an FCOS and a Faster R-CNN as teachers."""

    def build(out: Path, **values: Any) -> CompareConfig:
        defaults: dict[str, Any] = {
            "data": DataConfig(str(tiny_root), image_size=64, batch_size=4),
            "student": STUDENT,
            "pairs": {"both": list(tiny_teachers)},
            "methods": ["none", "pkd"],
            "seeds": [0],
            "epochs": 2,
            "optim": OptimConfig(warmup=1),
            "teacher_cache": "ram",
        }
        return CompareConfig(out=str(out), **{**defaults, **values})

    return build
