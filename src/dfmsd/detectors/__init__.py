"""Detectors: the contract, the adapters, the builders, and the files that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.detectors.base import Detector
from dfmsd.detectors.config import DetectorConfig, torchvision_archs
from dfmsd.utils.lazy import lazily

if TYPE_CHECKING:
    from dfmsd.detectors.build.backbones import build_backbone, list_backbones
    from dfmsd.detectors.build.builders import DETECTORS, build_detector, check_frozen
    from dfmsd.detectors.checkpoints import load_detector, save_detector
    from dfmsd.detectors.generic import ModuleDetector
    from dfmsd.detectors.torchvision.wrap import TorchvisionDetector, wrap_torchvision

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
        "DETECTORS": "dfmsd.detectors.build.builders",
        "ModuleDetector": "dfmsd.detectors.generic",
        "TorchvisionDetector": "dfmsd.detectors.torchvision.wrap",
        "build_backbone": "dfmsd.detectors.build.backbones",
        "build_detector": "dfmsd.detectors.build.builders",
        "check_frozen": "dfmsd.detectors.build.builders",
        "list_backbones": "dfmsd.detectors.build.backbones",
        "load_detector": "dfmsd.detectors.checkpoints",
        "save_detector": "dfmsd.detectors.checkpoints",
        "wrap_torchvision": "dfmsd.detectors.torchvision.wrap",
    },
)
