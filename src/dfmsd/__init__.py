"""Distil big object detectors into a small, better one, stage by stage, by dual feature masking.

The method is a reconstruction from the abstract of arXiv 2407.13147; see docs/concepts.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dfmsd import losses
from dfmsd.api import distill
from dfmsd.data import DataConfig
from dfmsd.detectors import Detector, DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.distill.stages import StageConfig
from dfmsd.distill.task import DistillationTask
from dfmsd.distill.teacher import FrozenTeacher
from dfmsd.engine.config import DistillConfig, OptimConfig, TrainConfig
from dfmsd.engine.evaluate import evaluate
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Detections, FeaturePyramid, LevelSpec, Target

if TYPE_CHECKING:
    from dfmsd.data import CocoDataModule
    from dfmsd.engine.run import Result, train

__all__ = [
    "Batch",
    "CocoDataModule",
    "DataConfig",
    "Detections",
    "Detector",
    "DetectorConfig",
    "DfmsdError",
    "DistillConfig",
    "DistillationTask",
    "FeaturePyramid",
    "FrozenTeacher",
    "LevelSpec",
    "OptimConfig",
    "Result",
    "StageConfig",
    "Target",
    "TrainConfig",
    "build_detector",
    "distill",
    "evaluate",
    "load_detector",
    "losses",
    "save_detector",
    "train",
]

_NEEDS_ENGINE = {"CocoDataModule": "dfmsd.data", "Result": "dfmsd.engine.run", "train": "dfmsd.engine.run"}


def __getattr__(name: str) -> Any:
    """Import what stands on pytorch-lightning when it is asked for: a loss in another loop does without it."""
    if name in _NEEDS_ENGINE:
        return getattr(import_module(_NEEDS_ENGINE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
