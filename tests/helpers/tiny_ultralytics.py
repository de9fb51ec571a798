"""Tiny YOLO detectors with random weights, built and saved by the library itself."""

from __future__ import annotations

import copy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dfmsd.types import Target

needs_ultralytics = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="needs pip install 'dfmsd[ultralytics]' (make test-ultralytics)"
)
NEEDED = [pytest.mark.ultralytics, needs_ultralytics]
FAMILIES = ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
CLASSES = ("square", "disc")
SIZES = [(96, 128), (64, 128)]
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[8.0, 8, 40, 40], [50, 20, 110, 90]]), "labels": torch.tensor([1, 0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def build_theirs(family: str, classes: tuple[str, ...] = CLASSES, kind: str = "DetectionModel") -> Any:
    """Build a model as the library's trainer does, with statistics of batch normalization that differ from 0 and 1."""
    torch.manual_seed(0)
    model = getattr(import_module("ultralytics.nn.tasks"), kind)(f"{family}.yaml", nc=len(classes), verbose=False)
    model.names = dict(enumerate(classes))
    model.args = import_module("ultralytics.cfg").get_cfg()
    model.train()(torch.rand(4, 3, 64, 64))
    return model.eval()


def save_theirs(model: Any, path: Path, content: dict[str, Any] | None = None) -> str:
    """Save a checkpoint as the library's trainer does, with some of its content replaced; return the reference."""
    averaged = copy.deepcopy(model).half()
    torch.save({"epoch": 3, "model": None, "ema": averaged, "train_args": {"imgsz": 96}} | (content or {}), path)
    return f"ultralytics:{path}"
