"""Data sets in the COCO layout: reading, transforms, loaders, and the built-in digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.data.config import DataConfig
from dfmsd.utils.lazy import lazy_imports

if TYPE_CHECKING:
    from dfmsd.data.augmentation import Augmentation
    from dfmsd.data.batching import collate
    from dfmsd.data.coco import CocoDetection
    from dfmsd.data.datamodule import CocoDataModule
    from dfmsd.data.dataset import DetectionDataset
    from dfmsd.data.digits import cached_digits, make_digits
    from dfmsd.data.images import read_image
    from dfmsd.data.records import ImageRecord
    from dfmsd.data.samplers import EpochSampler
    from dfmsd.data.transforms import Sample, fit, hflip, random_rescale
else:  # torchvision takes seconds to import
    __getattr__, __dir__ = lazy_imports(__name__)

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
