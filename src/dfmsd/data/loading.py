"""Loaders of one split, without augmentation, and what all loaders have in common."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from dfmsd.data.batching import collate
from dfmsd.data.config import DataConfig
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.holdout import split_holdout
from dfmsd.data.imagecache import choose_cache, resized_bytes
from dfmsd.data.loader import ignore_stop_signals
from dfmsd.data.opening import describe, open_split
from dfmsd.data.split import DetectionSplit
from dfmsd.data.transforms import Sample
from dfmsd.utils.device import available_cores

logger = logging.getLogger("dfmsd")


def split_loader(config: DataConfig, split: str = "val") -> DataLoader[Sample]:
    """Open one split and return a loader of its images, without augmentation; no other split is opened.

    Args:
        config: Data configuration; with ``holdout``, ``val`` is that share of the training images.
        split: See `open_split`.

    Raises:
        DfmsdError: There is no such split, or it is damaged.
    """
    held_out = split == "val" and config.holdout > 0
    data = open_split(config, "train" if held_out else split)
    if held_out:
        data = split_holdout(data, config.holdout)[1]
    return plain_loader(config, data, "held out" if held_out else split)


def plain_loader(config: DataConfig, data: DetectionSplit, name: str) -> DataLoader[Sample]:
    """Return a loader of the images of a split, without augmentation.

    Args:
        config: Data configuration.
        data: The split.
        name: Its name, for the log.
    """
    logger.info("data: %s", describe(config, {name: len(data)}))
    fits = choose_cache(config, resized_bytes([data], config.image_size)) != "off"
    options = loader_options(config, count_workers(config.workers, fits, 1))
    return DataLoader(DetectionDataset(data, config.image_size), config.batch_size, **options)


def loader_options(config: DataConfig, workers: int, teacher_size: int | None = None) -> dict[str, Any]:
    """Return the arguments of a ``DataLoader`` besides its data and batch size.

    Args:
        config: Data configuration.
        workers: Worker processes, see `count_workers`.
        teacher_size: Longer side of the images that the teachers see, in pixels; None for that of the config.
    """
    side = config.image_size if config.pad == "square" else None
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": ignore_stop_signals,
        "pin_memory": torch.cuda.is_available(),
        "collate_fn": partial(collate, image_size=side, teacher_size=teacher_size),
        "generator": torch.Generator(),  # by default a loader draws from the global generator
    }


def count_workers(configured: int | None, cached: bool, processes: int) -> int:
    """Return the number of worker processes of a loader.

    Args:
        configured: ``data.workers``; None chooses.
        cached: Whether decoded images are cached, so that workers would cost more than they save.
        processes: Processes of the run on this machine, which share its cores.
    """
    if configured is not None:
        return configured
    if cached:
        return 0
    # One core is left to the training: with two cores, one worker beats none and two (benchmarks/data.py).
    return max(0, min(4, available_cores() // processes - 1))
