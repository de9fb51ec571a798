"""Samplers of ``(epoch, index)`` keys that depend on the seed and the epoch only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DistributedSampler


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Sample the keys ``(epoch, index)`` of one epoch in random order.

    With several processes, each gets every ``world``-th key of the same order; the order is repeated as needed so that
    all processes get equally many.

    Args:
        length: Number of images.
        seed: At least 0.
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(self, length: int, seed: int = 0, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(length), num_replicas=world, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.length = length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over this process's keys of the epoch."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        indices = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        return iter([(self.epoch, index) for index in indices.tolist()])


class MixedSampler(EpochSampler):
    """Sample the keys of batches that end with unlabeled images.

    Labeled images come in the order of `EpochSampler`, without a last, smaller batch. Unlabeled images come in random
    order, each once before any comes again; an epoch goes on where the one before ended, so that all of them are used
    even if an epoch needs only a few.

    Args:
        length: Number of labeled images.
        unlabeled: Number of unlabeled images; their indices follow the labeled ones.
        batch_size: Labeled images per batch.
        extra: Unlabeled images per batch, in addition.
        seed: At least 0.
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(
        self, length: int, unlabeled: int, batch_size: int, extra: int, seed: int = 0, *, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(length, seed, rank=rank, world=world)
        self.unlabeled = unlabeled
        self.batch_size = min(batch_size, self.num_samples)
        self.extra = extra

    def __len__(self) -> int:
        """Return the number of this process's keys per epoch."""
        return self.num_samples // self.batch_size * (self.batch_size + self.extra)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over this process's keys of the epoch."""
        labeled = list(super().__iter__())
        batches = len(labeled) // self.batch_size
        needed = batches * self.extra * self.num_replicas
        first, offset = divmod(self.epoch * needed, self.unlabeled)
        rounds = [self._round(first + number) for number in range(-(-(offset + needed) // self.unlabeled))]
        indices = np.concatenate(rounds)[offset : offset + needed][self.rank :: self.num_replicas] + self.length
        unlabeled = [(self.epoch, index) for index in indices.tolist()]
        return chain.from_iterable(
            labeled[i * self.batch_size : (i + 1) * self.batch_size] + unlabeled[i * self.extra : (i + 1) * self.extra]
            for i in range(batches)
        )

    def _round(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, number, self.unlabeled)).permutation(self.unlabeled)


class EpochBatches(BatchSampler):
    """Batches of keys of one epoch.

    Attributes:
        start: Number of batches to skip at the beginning.
    """

    start = 0

    def __iter__(self) -> Iterator[list[Any]]:
        """Iterate over the epoch; skipped batches are not loaded."""
        yield from islice(super().__iter__(), self.start, None)
