"""Detectors: the contract, adapters of libraries, builders and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.detectors.config import DetectorConfig, torchvision_archs
from dfmsd.utils.lazy import lazy_imports

if TYPE_CHECKING:
    from dfmsd.detectors.base import Detector
    from dfmsd.detectors.build.backbones import build_backbone, list_backbones
    from dfmsd.detectors.checkpoints import load_detector, save_detector
    from dfmsd.detectors.generic import ModuleDetector
    from dfmsd.detectors.initial import adopt_architecture, build_detector
    from dfmsd.detectors.prediction import Prediction
    from dfmsd.detectors.registry import DETECTORS, check_frozen
    from dfmsd.detectors.torchvision.wrap import TorchvisionDetector, wrap_torchvision
else:  # torch, torchvision and timm take seconds to import
    __getattr__, __dir__ = lazy_imports(__name__)

__all__ = [
    "DETECTORS",
    "Detector",
    "DetectorConfig",
    "ModuleDetector",
    "Prediction",
    "TorchvisionDetector",
    "adopt_architecture",
    "build_backbone",
    "build_detector",
    "check_frozen",
    "list_backbones",
    "load_detector",
    "save_detector",
    "torchvision_archs",
    "wrap_torchvision",
]
