"""Data sets in the COCO layout: reading, transforms, loaders, and the built-in digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.data.config import DataConfig
from dfmsd.utils.lazy import lazily

if TYPE_CHECKING:
    from dfmsd.data.coco import CocoDetection
    from dfmsd.data.datamodule import CocoDataModule
    from dfmsd.data.dataset import DetectionDataset
    from dfmsd.data.digits import cached_digits, make_digits
    from dfmsd.data.images import read_image
    from dfmsd.data.records import ImageRecord
    from dfmsd.data.samplers import EpochSampler
    from dfmsd.data.transforms import Augmentation, Sample, collate, fit, hflip, random_rescale

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

# Modules that import torchvision or Lightning, which configs do not need, are loaded on first use.
__getattr__ = lazily(
    __name__,
    {
        "Augmentation": "dfmsd.data.transforms",
        "CocoDataModule": "dfmsd.data.datamodule",
        "CocoDetection": "dfmsd.data.coco",
        "DetectionDataset": "dfmsd.data.dataset",
        "EpochSampler": "dfmsd.data.samplers",
        "ImageRecord": "dfmsd.data.records",
        "Sample": "dfmsd.data.transforms",
        "cached_digits": "dfmsd.data.digits",
        "collate": "dfmsd.data.transforms",
        "fit": "dfmsd.data.transforms",
        "hflip": "dfmsd.data.transforms",
        "make_digits": "dfmsd.data.digits",
        "random_rescale": "dfmsd.data.transforms",
        "read_image": "dfmsd.data.images",
    },
)
