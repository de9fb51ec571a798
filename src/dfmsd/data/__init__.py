"""Data sets in the COCO layout: reading, geometry, loaders, and the embedded digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfmsd.data.config import DataConfig
from dfmsd.utils.lazy import lazily

if TYPE_CHECKING:
    from dfmsd.data.coco import CocoDetection, ImageRecord
    from dfmsd.data.datamodule import CocoDataModule
    from dfmsd.data.dataset import DetectionDataset, EpochSampler
    from dfmsd.data.digits import cached_digits, make_digits
    from dfmsd.data.images import read_image
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

# What stands on torchvision or the engine: a config is read and refused without them.
__getattr__ = lazily(
    __name__,
    {
        "Augmentation": "dfmsd.data.transforms",
        "CocoDataModule": "dfmsd.data.datamodule",
        "CocoDetection": "dfmsd.data.coco",
        "DetectionDataset": "dfmsd.data.dataset",
        "EpochSampler": "dfmsd.data.dataset",
        "ImageRecord": "dfmsd.data.coco",
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
