from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dfmsd.starting.facts import Facts, TeacherFacts
from dfmsd.types import LevelSpec

MakeFacts = Callable[..., Facts]


@pytest.fixture
def facts() -> MakeFacts:
    """Return a function that makes facts: 448 images of 320 pixels on a CPU, objects of 1 % to 50 % of a side."""

    def make(**values: Any) -> Facts:
        defaults: dict[str, Any] = {
            "root": "data",
            "holdout": 0.0,
            "train_images": 448,
            "val_images": 190,
            "class_names": ("a", "b"),
            "sizes": torch.linspace(0.01, 0.5, 50),
            "side": 320,
            "gpu": False,
            "memory": 2**34,
            "teacher": None,
        }
        return Facts(**{**defaults, **values})

    return make


@pytest.fixture
def teacher() -> Callable[..., TeacherFacts]:
    """Return a function that makes a teacher: an FCOS of 5 M parameters, 64 channels wide."""

    def make(**values: Any) -> TeacherFacts:
        channels = values.pop("channels", 64)
        defaults: dict[str, Any] = {
            "reference": "runs/teacher",
            "arch": "fcos",
            "parameters": 5_000_000,
            "levels": tuple(LevelSpec(f"p{n}", channels, 2**n) for n in range(3, 8)),
            "head_convs": 2,
            "image_size": None,
            "class_names": ("a", "b"),
        }
        return TeacherFacts(**{**defaults, **values})

    return make
