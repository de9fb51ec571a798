"""Detectors: the contract, the adapters, the builders, and the files that hold them."""

from dfmsd.detectors.backbones import build_backbone, list_backbones
from dfmsd.detectors.base import Detector
from dfmsd.detectors.checkpoints import load_detector, save_detector
from dfmsd.detectors.config import TORCHVISION_MODELS, DetectorConfig
from dfmsd.detectors.module import ModuleDetector
from dfmsd.detectors.registry import DETECTORS, build_detector, check_frozen
from dfmsd.detectors.torchvision import TorchvisionDetector, wrap_torchvision

__all__ = [
    "DETECTORS",
    "TORCHVISION_MODELS",
    "Detector",
    "DetectorConfig",
    "ModuleDetector",
    "TorchvisionDetector",
    "build_backbone",
    "build_detector",
    "check_frozen",
    "list_backbones",
    "load_detector",
    "save_detector",
    "wrap_torchvision",
]
