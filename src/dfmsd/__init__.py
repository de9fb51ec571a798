"""Distill large object detectors into a small student, stage by stage, with dual feature masking.

The method is a reconstruction from the abstract of arXiv 2407.13147; see docs/concepts.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.utils.lazy import lazy_imports

if TYPE_CHECKING:
    from dfmsd import data, detectors, losses
    from dfmsd.api.models import (
        convert,
        evaluate,
        export,
        inspect_data,
        measure_students,
        predict,
        report,
        share,
        visualize,
    )
    from dfmsd.api.planning import check, compare, estimate, init, rank_teachers, try_recipe, tune
    from dfmsd.api.runs import distill, train
    from dfmsd.comparison.config import CompareConfig
    from dfmsd.data.config import DataConfig
    from dfmsd.data.datamodule import CocoDataModule
    from dfmsd.detectors.base import Detector
    from dfmsd.detectors.checkpoints import load_detector, save_detector
    from dfmsd.detectors.config import DetectorConfig
    from dfmsd.detectors.generic import ModuleDetector
    from dfmsd.detectors.initial import build_detector
    from dfmsd.detectors.prediction import Prediction
    from dfmsd.distillation.stages import NearConfig, StageConfig
    from dfmsd.distillation.task import DistillationTask
    from dfmsd.distillation.teacher import FrozenTeacher
    from dfmsd.engine.config import DistillConfig, TrainConfig
    from dfmsd.engine.optim import OptimConfig
    from dfmsd.engine.run import Result
    from dfmsd.errors import DfmsdError
    from dfmsd.tuning.config import TuneConfig, TuneSection
    from dfmsd.types import Batch, Detections, FeaturePyramid, LevelSpec, Target
else:  # torch, torchvision and Lightning take seconds to import
    __getattr__, __dir__ = lazy_imports(__name__)

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "CocoDataModule",
    "CompareConfig",
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
    "ModuleDetector",
    "NearConfig",
    "OptimConfig",
    "Prediction",
    "Result",
    "StageConfig",
    "Target",
    "TrainConfig",
    "TuneConfig",
    "TuneSection",
    "build_detector",
    "check",
    "compare",
    "convert",
    "data",
    "detectors",
    "distill",
    "estimate",
    "evaluate",
    "export",
    "init",
    "inspect_data",
    "load_detector",
    "losses",
    "measure_students",
    "predict",
    "rank_teachers",
    "report",
    "save_detector",
    "share",
    "train",
    "try_recipe",
    "tune",
    "visualize",
]
