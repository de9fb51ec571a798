"""Tiny configs and runs for the engine's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distill.stages import StageConfig
from dfmsd.distill.task import DistillationTask
from dfmsd.engine.config import DistillConfig, OptimConfig, TrainConfig
from dfmsd.engine.run import build_task

STUDENT = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=16, head_convs=1)


@pytest.fixture(scope="session")
def distill_config(tiny_root: Path, tiny_teachers: tuple[str, str]) -> Callable[..., DistillConfig]:
    """Two stages, of two epochs and one epoch of two steps, with masks that draw random numbers."""

    def build(out: Path, **values: Any) -> DistillConfig:
        first, second = tiny_teachers
        defaults: dict[str, Any] = {
            "data": DataConfig(str(tiny_root), image_size=64, batch_size=4),
            "student": STUDENT,
            "stages": [StageConfig(epochs=2, teacher=first), StageConfig(epochs=1, teacher=second)],
            "loss": {"name": "dfmsd", "direction": "random"},
            "optim": OptimConfig(warmup=1),
        }
        return DistillConfig(out=str(out), **{**defaults, **values})

    return build


@pytest.fixture(scope="session")
def built_task(
    distill_config: Callable[..., DistillConfig], tmp_path_factory: pytest.TempPathFactory
) -> DistillationTask:
    """The task of `distill_config` with balanced terms, built once: take `task`."""
    return build_task(distill_config(tmp_path_factory.mktemp("built"), balance=0.5), ("square", "disc"))


@pytest.fixture
def task(built_task: DistillationTask) -> DistillationTask:
    """A task that a test may change."""
    return copy.deepcopy(built_task)


@pytest.fixture(scope="session")
def train_config(tiny_root: Path) -> Callable[..., TrainConfig]:
    """One epoch of two steps."""

    def build(out: Path, **values: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "data": DataConfig(str(tiny_root), image_size=64, batch_size=4),
            "model": STUDENT,
            "epochs": 1,
            "optim": OptimConfig(warmup=1),
        }
        return TrainConfig(out=str(out), **{**defaults, **values})

    return build
