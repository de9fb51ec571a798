"""Train and val loaders for the training engine."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dfmsd.data.coco import CocoDetection
from dfmsd.data.config import DataConfig
from dfmsd.data.dataset import DetectionDataset, EpochSampler
from dfmsd.data.digits import cached_digits
from dfmsd.data.loader import ResumableLoader, leave_signals_to_the_run
from dfmsd.data.transforms import STRIDE, Augmentation, Sample, collate, fitted_size
from dfmsd.data.unlabeled import MixedSampler, unlabeled_records
from dfmsd.errors import DfmsdError
from dfmsd.utils.device import available_cores
from dfmsd.utils.store import GIB, DiskStore, cache_root, make_room

logger = logging.getLogger("dfmsd")

LARGEST_SIZE = 2**14
"""Pixels of a side: a frame of this size takes 3 GiB."""


class CocoDataModule(pl.LightningDataModule):
    """Both splits of a data set, checked at once, and their loaders of :class:`dfmsd.types.Batch`.

    Args:
        config: Where and how.
        seed: Order and augmentation of the training images follow from it, at least 0.
        digest: Tell the digest of each training image, the key of caches.
        processes: Of the run on this machine, which share its cores.

    Attributes:
        labeled: Number of training images with annotations; in ``train`` those without follow them.

    Raises:
        DfmsdError: A value is out of its range, the data set is damaged, or the splits name different classes.
    """

    def __init__(self, config: DataConfig, seed: int = 0, *, digest: bool = False, processes: int = 1) -> None:
        super().__init__()
        _check(config, seed)
        self.config = config
        self.seed = seed
        root = cached_digits() if config.root == "digits" else config.root
        whole = train = CocoDetection(root, "train")
        val = CocoDetection(root, "val")
        if config.holdout:
            train, val = hold_out(whole, config.holdout)
        if train.class_names != val.class_names:
            raise DfmsdError(
                f"{val.file}: classes {list(val.class_names)} differ from those of the train split, "
                f"{list(train.class_names)}; give both files the same categories"
            )
        self.class_names: tuple[str, ...] = train.class_names
        self.labeled = len(train)
        if config.unlabeled is not None:
            own = [record.path for split in (whole, val) for record in split.records]
            train = train.joined(unlabeled_records(config.unlabeled, own))
        need = _bytes_resized((train, val), config.image_size)
        cache = _fitting_cache(config, need)
        self.workers = _workers(config.workers, cache != "off", processes)
        store = _open_store(Path(root), config, need) if cache == "disk" else None
        keep: dict[str, Any] = {"cache": cache == "ram", "store": store}
        augmentation = Augmentation(config.image_size, config.flip, config.scale_jitter)
        self.train = DetectionDataset(train, config.image_size, augmentation, **keep, digest=digest, seed=seed)
        self.val = DetectionDataset(val, config.image_size, **keep)

    @property
    def example(self) -> list[int]:
        """Indices of images that make a training batch, those with annotations first."""
        others = range(self.labeled, len(self.train))
        return [*range(min(self.config.batch_size, self.labeled)), *islice(cycle(others), self._extra)]

    @property
    def _extra(self) -> int:
        """Images without annotations in a training batch."""
        return round(self.config.unlabeled_ratio * self.config.batch_size) if len(self.train) > self.labeled else 0

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented; a last, smaller batch is left out (its statistics harm BatchNorm)."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.config.batch_size
        if self._extra:
            unlabeled = len(self.train) - self.labeled
            mixed = MixedSampler(self.labeled, unlabeled, size, self._extra, self.seed, rank=rank, world=world)
            whole = mixed.batch_size + mixed.extra
            return ResumableLoader(self.train, mixed, whole, drop_last=False, **self._options)
        sampler = EpochSampler(self.labeled, self.seed, rank=rank, world=world)
        return ResumableLoader(self.train, sampler, size, drop_last=len(sampler) >= size, **self._options)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Every image once, in the order of the annotation file, without augmentation."""
        return DataLoader(self.val, self.config.batch_size, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        """What both loaders share."""
        return {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "worker_init_fn": leave_signals_to_the_run,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": partial(collate, image_size=self.config.image_size if self.config.pad == "square" else None),
            "generator": torch.Generator(),  # a loader without its own draws from the global one
        }


def hold_out(split: CocoDetection, share: float) -> tuple[CocoDetection, CocoDetection]:
    """Part a split by its file names: what is left, and about this share of the images.

    Args:
        split: The whole.
        share: 0..1.

    Raises:
        DfmsdError: One of the two parts has no image.
    """
    aside = {record.id for record in split.records if _position(record.path.name) < share}
    if not 0 < len(aside) < len(split):
        raise DfmsdError(
            f"data.holdout: {share} of {len(split)} images puts {len(aside)} aside; give a share that leaves images "
            "on both sides"
        )
    return split.part(lambda record: record.id not in aside), split.part(lambda record: record.id in aside)


def _position(name: str) -> float:
    """Map a name to a number that looks random in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


def _check(config: DataConfig, seed: int) -> None:
    jitter = config.scale_jitter
    rules = (
        (
            config.image_size >= STRIDE and config.image_size % STRIDE == 0,
            "image_size",
            f"a positive multiple of {STRIDE}",
        ),
        (config.image_size <= LARGEST_SIZE, "image_size", f"at most {LARGEST_SIZE} pixels"),
        (config.batch_size >= 1, "batch_size", "at least 1"),
        (config.pad in ("square", "batch"), "pad", "`square` or `batch`"),
        (0 <= config.flip <= 1, "flip", "a probability, 0 to 1"),
        (
            jitter is None or 0 < jitter[0] <= jitter[1] < math.inf,
            "scale_jitter",
            "[low, high] with 0 < low <= high, or null",
        ),
        (0 <= config.holdout <= 0.5, "holdout", "a share of the training images, 0 to 0.5"),
        (0.5 < config.unlabeled_ratio * config.batch_size < math.inf, "unlabeled_ratio", "one image a batch or more"),
        (config.workers is None or config.workers >= 0, "workers", "at least 0, or null for automatic"),
        (config.cache in ("ram", "disk", "off"), "cache", "`ram`, `disk` or `off`"),
        (config.cache_gib > 0, "cache_gib", "a number above 0"),
    )
    for valid, key, expected in rules:
        if not valid:
            raise DfmsdError(f"data.{key}: expected {expected}, got {getattr(config, key)!r}; change it")
    if seed < 0:
        raise DfmsdError(f"seed: expected at least 0, got {seed}; change it")


def _bytes_resized(splits: Iterable[CocoDetection], image_size: int) -> int:
    """Sum the bytes of all resized images, which the annotation files tell."""
    sizes = (fitted_size(record.height, record.width, image_size) for split in splits for record in split.records)
    return sum(3 * height * width for height, width in sizes)


def _fitting_cache(config: DataConfig, need: int) -> str:
    """Decide on the cache beforehand: all images or none."""
    cache = str(config.cache)
    if cache == "off" or (cache == "ram" and config.workers):
        return "off"
    if need > config.cache_gib * GIB:
        logger.info(
            "decoded images would take %.1f GiB of %s, more than %.1f (data.cache_gib): they are decoded anew in every "
            "epoch",
            need / GIB,
            cache,
            config.cache_gib,
        )
        return "off"
    return cache


def _open_store(root: Path, config: DataConfig, need: int) -> DiskStore:
    name = hashlib.blake2b(f"{root.absolute()} {config.image_size}".encode(), digest_size=16).hexdigest()
    folder = cache_root() / "images" / name
    return DiskStore(folder, make_room(folder.parent, {name}, need, int(config.cache_gib * GIB)))


def _workers(asked: int | None, cached: bool, processes: int) -> int:
    if asked is not None:
        return asked
    if cached:
        return 0
    # One core stays with the training: benchmarks/data.py has one process ahead of none and of two on two cores.
    return max(0, min(4, available_cores() // processes - 1))
