"""Distil big object detectors into a small, better one, stage by stage, by dual feature masking.

The method is a reconstruction from the abstract of arXiv 2407.13147; see docs/concepts.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd import losses
from dfmsd.api import distill
from dfmsd.data import DataConfig
from dfmsd.detectors import Detector, DetectorConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Detections, FeaturePyramid, LevelSpec, Target
from dfmsd.utils.lazy import lazily

if TYPE_CHECKING:
    from dfmsd.data import CocoDataModule
    from dfmsd.detectors import build_detector, load_detector, save_detector
    from dfmsd.engine.run import Result, train
    from dfmsd.evaluation.evaluate import evaluate

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

# What stands on torchvision or pytorch-lightning: a loss in another loop does without them.
__getattr__ = lazily(
    __name__,
    {
        "CocoDataModule": "dfmsd.data",
        "Result": "dfmsd.engine.run",
        "build_detector": "dfmsd.detectors",
        "evaluate": "dfmsd.evaluation.evaluate",
        "load_detector": "dfmsd.detectors",
        "save_detector": "dfmsd.detectors",
        "train": "dfmsd.engine.run",
    },
)
