"""Samples whose random draws depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from dfmsd.data.coco import CocoDetection
from dfmsd.data.transforms import Augmentation, Sample, fit


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
        seed: At least 0.
    """

    def __init__(
        self,
        coco: CocoDetection,
        image_size: int,
        augmentation: Augmentation | None = None,
        *,
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        self.coco = coco
        self.image_size = image_size
        self.augmentation = augmentation
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
        sample = fit(*self.coco[index], self.image_size, self.coco.records[index].id)
        if self._cache is not None:
            self._cache[index] = sample
        return sample


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
