"""Data sets: reading, transforms, loaders, and the built-in digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.data.config import DataConfig
from dfmsd.utils.lazy import lazy_imports

if TYPE_CHECKING:
    from dfmsd.data.augmentation import Augmentation
    from dfmsd.data.batching import collate
    from dfmsd.data.datamodule import CocoDataModule
    from dfmsd.data.dataset import DetectionDataset
    from dfmsd.data.digits import cached_digits, make_digits
    from dfmsd.data.images import read_image
    from dfmsd.data.opening import open_split
    from dfmsd.data.records import ImageRecord
    from dfmsd.data.samplers import EpochSampler
    from dfmsd.data.split import DetectionSplit
    from dfmsd.data.transforms import Sample, fit, hflip, random_rescale
else:  # torchvision takes seconds to import
    __getattr__, __dir__ = lazy_imports(__name__)

__all__ = [
    "Augmentation",
    "CocoDataModule",
    "DataConfig",
    "DetectionDataset",
    "DetectionSplit",
    "EpochSampler",
    "ImageRecord",
    "Sample",
    "cached_digits",
    "collate",
    "fit",
    "hflip",
    "make_digits",
    "open_split",
    "random_rescale",
    "read_image",
]
