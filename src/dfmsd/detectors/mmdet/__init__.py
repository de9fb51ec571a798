"""Adapter of MMDetection."""

from dfmsd.detectors.mmdet.files import build_mmdet as build
from dfmsd.detectors.mmdet.files import load_mmdet as load
from dfmsd.detectors.mmdet.files import restore_mmdet as restore

__all__ = ["build", "load", "restore"]
