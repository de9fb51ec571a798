"""Data sets in the COCO layout: reading, geometry, loaders, and the embedded digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfmsd.data.coco import CocoDetection, ImageRecord
from dfmsd.data.config import DataConfig
from dfmsd.data.dataset import DetectionDataset, EpochSampler
from dfmsd.data.digits import cached_digits, make_digits
from dfmsd.data.images import read_image
from dfmsd.data.transforms import Augmentation, Sample, collate, fit, hflip, random_rescale

if TYPE_CHECKING:
    from dfmsd.data.datamodule import CocoDataModule

__all__ = [
    "Augmentation",
    "CocoDataModule",
    "CocoDetection",
    "DataConfig",
    "DetectionDataset",
    "EpochSampler",
    "ImageRecord",
    "Sample",
    "cached_digits",
    "collate",
    "fit",
    "hflip",
    "make_digits",
    "random_rescale",
    "read_image",
]


def __getattr__(name: str) -> Any:
    """Import the engine, half of the start-up time, only where its data module is asked for."""
    if name == "CocoDataModule":
        from dfmsd.data.datamodule import CocoDataModule

        return CocoDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
