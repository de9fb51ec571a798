"""Adapter of Ultralytics' YOLO detectors."""

from dfmsd.detectors.ultralytics.files import build_ultralytics as build
from dfmsd.detectors.ultralytics.files import load_ultralytics as load
from dfmsd.detectors.ultralytics.files import restore_ultralytics as restore

__all__ = ["build", "load", "restore"]
