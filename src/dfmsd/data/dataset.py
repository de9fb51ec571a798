"""Samples whose random draws depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from dfmsd.data.coco import CocoDetection, ImageRecord
from dfmsd.data.transforms import Augmentation, Sample, fit, fitted_size, pixel_digest, resize_boxes
from dfmsd.types import Target
from dfmsd.utils.store import Store


class DetectionDataset(Dataset[Sample]):
    """A COCO split at its training size.

    ``dataset[epoch, index]`` is image ``index`` as epoch ``epoch`` shows it; ``dataset[index]`` is epoch 0. Two runs
    with the same seed see the same data, whatever else draws from the global generators, in any number of workers,
    resumed or not.

    Args:
        coco: The images and their boxes.
        image_size: Longer side after resizing, in pixels.
        augmentation: Applied to each sample; none for evaluation.
        cache: Keep the resized images in RAM as uint8, in this process.
        store: Where the resized images of this and other processes are kept, if anywhere.
        digest: Tell the digest of each sample, the key of caches.
        seed: At least 0.
    """

    def __init__(
        self,
        coco: CocoDetection,
        image_size: int,
        augmentation: Augmentation | None = None,
        *,
        cache: bool = False,
        store: Store | None = None,
        digest: bool = False,
        seed: int = 0,
    ) -> None:
        self.coco = coco
        self.image_size = image_size
        self.augmentation = augmentation
        self.store = store
        self.digest = digest
        self.seed = seed
        self._cache: dict[int, Sample] | None = {} if cache else None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.coco)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Give one sample; the key is ``index`` or ``(epoch, index)``."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} images")
        sample = self._resized(index)
        if self.augmentation is None:
            return sample
        return self.augmentation(sample, np.random.default_rng((self.seed, epoch, index)))

    def _resized(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self._fitted(index)._replace(labeled=self.coco.records[index].labeled)
        if self.digest:
            sample = sample._replace(digest=pixel_digest(sample.image))
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def _fitted(self, index: int) -> Sample:
        record = self.coco.records[index]
        if self.store is None or not record.path.exists():  # of a file that is gone decoding tells
            return fit(*self.coco[index], self.image_size, record.id)
        key = file_key(record.path, self.image_size)
        entry = self.store.get(key) or {}
        size = fitted_size(record.height, record.width, self.image_size)
        if _is_image(entry.get("image"), size):
            return _as_fitted(entry["image"].permute(2, 0, 1), record)
        sample = fit(*self.coco[index], self.image_size, record.id)
        self.store.put(key, {"image": sample.image.permute(1, 2, 0).contiguous()})
        return sample


def file_key(path: Path, image_size: int) -> str:
    """Hash what a resized image depends on without reading it: place, size and time of its file, and the new size."""
    status = os.stat(path)
    content = f"{path.absolute()} {status.st_mtime_ns} {status.st_size} {image_size}"
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _is_image(stored: Tensor | None, size: tuple[int, int]) -> bool:
    return stored is not None and stored.dtype == torch.uint8 and stored.shape == (*size, 3)


def _as_fitted(image: Tensor, record: ImageRecord) -> Sample:
    """Give what `fit` gives, from the image that it gave before."""
    height, width = image.shape[-2:]
    boxes = resize_boxes(record.boxes, (record.height, record.width), (height, width))
    scale = (height / record.height, width / record.width)
    return Sample(image, Target(boxes=boxes, labels=record.labels), scale, record.id)


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Keys ``(epoch, index)`` of one epoch, in an order that depends on the seed and the epoch only.

    With several processes each gets every ``world``-th key of the same order, which starts over where it is needed to
    give every process equally many.

    Args:
        length: Number of images.
        seed: At least 0.
        shuffle: Otherwise in order.
        rank: This process.
        world: Number of processes.
    """

    def __init__(self, length: int, seed: int = 0, *, shuffle: bool = True, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(length), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.length = length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Walk through this process's part of the epoch."""
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        own = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        return iter([(self.epoch, index) for index in own.tolist()])
