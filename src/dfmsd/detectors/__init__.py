"""Detectors: the contract, the adapters, the builders, and the files that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.detectors.base import Detector
from dfmsd.detectors.config import DetectorConfig, torchvision_archs
from dfmsd.lazy import lazily

if TYPE_CHECKING:
    from dfmsd.detectors.backbones import build_backbone, list_backbones
    from dfmsd.detectors.checkpoints import load_detector, save_detector
    from dfmsd.detectors.module import ModuleDetector
    from dfmsd.detectors.registry import DETECTORS, build_detector, check_frozen
    from dfmsd.detectors.torchvision import TorchvisionDetector, wrap_torchvision

__all__ = [
    "DETECTORS",
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
    "torchvision_archs",
    "wrap_torchvision",
]

# What stands on torchvision and timm: a config is read and refused without them.
__getattr__ = lazily(
    __name__,
    {
        "DETECTORS": "dfmsd.detectors.registry",
        "ModuleDetector": "dfmsd.detectors.module",
        "TorchvisionDetector": "dfmsd.detectors.torchvision",
        "build_backbone": "dfmsd.detectors.backbones",
        "build_detector": "dfmsd.detectors.registry",
        "check_frozen": "dfmsd.detectors.registry",
        "list_backbones": "dfmsd.detectors.backbones",
        "load_detector": "dfmsd.detectors.checkpoints",
        "save_detector": "dfmsd.detectors.checkpoints",
        "wrap_torchvision": "dfmsd.detectors.torchvision",
    },
)
