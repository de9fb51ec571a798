"""Lightning data module of a run: its training and validation images, and the loaders of both."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from dfmsd.data.augmentation import Augmentation
from dfmsd.data.classes import match_classes
from dfmsd.data.config import DataConfig
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.holdout import split_holdout
from dfmsd.data.imagecache import choose_cache, open_store, resized_bytes
from dfmsd.data.loader import ResumableLoader
from dfmsd.data.loading import count_workers, loader_options
from dfmsd.data.opening import describe, has_split, open_split
from dfmsd.data.records import ImageRecord, Records, box_sizes
from dfmsd.data.samplers import EpochSampler, MixedSampler
from dfmsd.data.split import DetectionSplit
from dfmsd.data.transforms import Sample
from dfmsd.data.unlabeled import unlabeled_records, with_boxes
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch

logger = logging.getLogger("dfmsd")


class CocoDataModule(pl.LightningDataModule):
    """Train and val splits of a data set, validated on construction, and loaders of :class:`dfmsd.types.Batch`.

    Args:
        config: Data configuration.
        seed: Determines the order and augmentation of training images; at least 0.
        digest: Compute the digest of each training image, which is the key of feature caches.
        processes: Processes of the run on this machine, which share its cores.
        epochs: Epochs of the run, the last of which are free of mosaic and mixup.
        teacher_size: Longer side of the training images that the teachers see, in pixels; None for that of the config.

    Attributes:
        train: Training images, unlabeled ones last.
        val: Validation images.
        num_labeled: Number of labeled training images.

    Raises:
        DfmsdError: The data set is damaged, or its splits have different classes.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int = 0,
        *,
        digest: bool = False,
        processes: int = 1,
        epochs: int | None = None,
        teacher_size: int | None = None,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise DfmsdError(f"seed must be at least 0, got {seed}")
        self.config = config
        self.seed = seed
        train, val = _open_labeled(config)
        self.class_names: tuple[str, ...] = train.class_names
        self.num_labeled = len(train)
        if config.unlabeled is not None:
            train = train.extended(_find_unlabeled(config.unlabeled, config, [train, val]))
        self.teacher_size = teacher_size
        size = resized_bytes((train, val), config.image_size)
        size += resized_bytes([train], teacher_size) if teacher_size else 0
        cache = choose_cache(config, size)
        self.workers = count_workers(config.workers, cache != "off", processes)
        store = open_store(config, size) if cache == "disk" else None
        self._keep: dict[str, Any] = {"cache": cache == "ram", "store": store}
        self._mixing_epochs = None if epochs is None else epochs - config.unmixed_epochs(epochs)
        self._digest = digest
        self._awaited: tuple[Path, bool] | None = None
        self.train = self._training_images(train)
        self.val = DetectionDataset(val, config.image_size, **self._keep)

    def _training_images(self, split: DetectionSplit) -> DetectionDataset:
        if self.teacher_size is None:
            return self._augmented(split, self.config.image_size, digest=self._digest)
        larger = self._augmented(split, self.teacher_size, digest=self._digest)
        return self._augmented(split, self.config.image_size, larger=larger)

    def _augmented(self, split: DetectionSplit, side: int, **options: Any) -> DetectionDataset:
        augmentation = Augmentation(side, **self.config.augmentation, mixing_epochs=self._mixing_epochs)
        own: dict[str, Any] = {"seed": self.seed, "pool": self.config.augment_pool, **self._keep}
        return DetectionDataset(split, side, augmentation, **own, **options)

    @property
    def unlabeled(self) -> DetectionSplit:
        """The images of `data.unlabeled`."""
        return self.train.coco.with_records(self.train.coco.records[self.num_labeled :])

    @property
    def labeled(self) -> DetectionSplit:
        """The training images with annotations of their own."""
        return self.train.coco.with_records(self.train.coco.records[: self.num_labeled])

    def add_pseudo_labels(self, content: Mapping[str, Any], *, keep_others: bool) -> None:
        """Train on boxes of unlabeled images, too.

        Args:
            content: A COCO file, see `with_boxes`.
            keep_others: Keep the images that have no box there, unlabeled; False leaves them out of the batches.

        Raises:
            DfmsdError: There is no box, or the file does not have one of the images.
        """
        assert self.config.unlabeled is not None
        own, category_ids = self.labeled, self.train.coco.category_ids
        soft = self.config.pseudo.keep == "soft"
        found = with_boxes(self.unlabeled.records, content, self.config.unlabeled, category_ids, soft=soft)
        if not any(record.labeled for record in found):
            raise DfmsdError(
                f"data.pseudo: no detection in the {len(found)} images of {self.config.unlabeled} is confident enough; "
                "lower data.pseudo.score, name a better data.pseudo.teacher, or leave data.pseudo out"
            )
        kept = [record for record in found if record.labeled or keep_others]
        self.train = self._training_images(own.extended(kept))

    def await_pseudo_labels(self, file: Path, *, keep_others: bool) -> None:
        """Add the pseudo-labels of a file that another process of the run writes before training starts."""
        self._awaited = file, keep_others

    def setup(self, stage: str) -> None:
        """Read pseudo-labels that another process has written; Lightning lets no process come here before it has."""
        if self._awaited is not None:
            file, keep_others = self._awaited
            self.add_pseudo_labels(json.loads(file.read_text(encoding="utf-8")), keep_others=keep_others)

    def assume_pseudo_labels(self) -> None:
        """Count the unlabeled images as labeled, without boxes, to measure what a training step costs."""
        columns = self.train.coco.records.columns
        records = Records(columns._replace(labeled=np.ones_like(columns.labeled)))
        self.train = self._training_images(self.train.coco.with_records(records))

    @property
    def example_indices(self) -> list[int]:
        """Indices of images that make up a training batch, labeled ones first."""
        unlabeled = range(self.num_labeled, len(self.train))
        labeled = range(min(self.config.batch_size, self.num_labeled))
        return [*labeled, *islice(cycle(unlabeled), self._unlabeled_per_batch)]

    def train_box_sizes(self) -> Tensor:
        """Return the square root of the area of every training box, in pixels of the input, without augmentation."""
        return box_sizes(self.train.coco.records, self.config.image_size)

    @property
    def _unlabeled_per_batch(self) -> int:
        if len(self.train) == self.num_labeled:
            return 0
        return round(self.config.unlabeled_ratio * self.config.batch_size)

    def train_dataloader(self) -> ResumableLoader:
        """Return the shuffled, augmented loader; it drops a last, smaller batch, whose statistics harm BatchNorm."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.config.batch_size
        if self._unlabeled_per_batch:
            unlabeled, extra = len(self.train) - self.num_labeled, self._unlabeled_per_batch
            mixed = MixedSampler(self.num_labeled, unlabeled, size, extra, self.seed, rank=rank, world=world)
            return ResumableLoader(self.train, mixed, mixed.batch_size + extra, drop_last=False, **self._options)
        sampler = EpochSampler(self.num_labeled, self.seed, rank=rank, world=world)
        return ResumableLoader(self.train, sampler, size, drop_last=len(sampler) >= size, **self._options)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the loader of every val image once, in the order of the annotation file, without augmentation."""
        return DataLoader(self.val, self.config.batch_size, **self._options)

    def teacher_val_dataloader(self) -> DataLoader[Sample]:
        """Return the loader of `val_dataloader` with images as the teachers see them."""
        return self.val_dataloader() if self.teacher_size is None else self.loader_of(self.val.coco, self.teacher_size)

    def augmented_val_dataloader(self, images: int | None = None) -> DataLoader[Sample]:
        """Return a loader of validation images, augmented as those of training are, as the teachers see them.

        Args:
            images: How many of them; None for all.
        """
        augmented = self._augmented(self.val.coco, self.teacher_size or self.config.image_size)
        return DataLoader(Subset(augmented, range(len(augmented))[:images]), self.config.batch_size, **self._options)

    def loader_of(self, split: DetectionSplit, image_size: int) -> DataLoader[Sample]:
        """Return a loader of images of the data set, without augmentation.

        Args:
            split: The images.
            image_size: Longer side after resizing, in pixels.
        """
        config = replace(self.config, image_size=image_size)
        images = DetectionDataset(split, image_size)
        return DataLoader(images, config.batch_size, **loader_options(config, self.workers))

    def sample_batches(self, images: int) -> Iterator[Batch]:
        """Iterate over training images that are evenly spread over the data set, without augmentation.

        Args:
            images: how many, at most.
        """
        step = max(1, self.num_labeled // images)
        larger = None if self.teacher_size is None else DetectionDataset(self.train.coco, self.teacher_size)
        plain = DetectionDataset(self.train.coco, self.config.image_size, larger=larger)
        indices = range(0, self.num_labeled, step)[:images]
        collate_fn = self._options["collate_fn"]
        for start in range(0, len(indices), self.config.batch_size):
            yield collate_fn([plain[index] for index in indices[start : start + self.config.batch_size]])

    @property
    def _options(self) -> dict[str, Any]:
        return loader_options(self.config, self.workers, self.teacher_size)


def _open_labeled(config: DataConfig) -> tuple[DetectionSplit, DetectionSplit]:
    """Open the training and validation images, the latter held out of the former with ``holdout``."""
    train = open_split(config, "train")
    if config.holdout:
        train, val = split_holdout(train, config.holdout)
    else:
        train, val = match_classes(train, open_split(config, "val"))
    counts = {"train": len(train), "held out" if config.holdout else "val": len(val)}
    logger.info("data: %s", describe(config, counts))
    return train, val


def _find_unlabeled(folder: str, config: DataConfig, labeled: Sequence[DetectionSplit]) -> list[ImageRecord]:
    """Find the images of ``data.unlabeled`` that belong to no split, not even to one that is not used."""
    unused = ("val", "test") if config.holdout else ("test",)
    others = [open_split(config, name) for name in unused if has_split(config, name)]
    return unlabeled_records(folder, [path for split in (*labeled, *others) for path in split.records.paths])
