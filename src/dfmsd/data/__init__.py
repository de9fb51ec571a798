"""Data sets in the COCO layout: reading, geometry, loaders, and the embedded digits."""

from dfmsd.data.coco import CocoDetection, ImageRecord, read_image
from dfmsd.data.datamodule import CocoDataModule, DataConfig
from dfmsd.data.dataset import DetectionDataset, EpochSampler
from dfmsd.data.digits import cached_digits, make_digits
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
