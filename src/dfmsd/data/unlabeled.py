"""Images without annotations, which fill up the batches of those that have some."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from dfmsd.data.coco import ImageRecord
from dfmsd.data.dataset import EpochSampler
from dfmsd.data.images import images_in, read_size
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import check_path

logger = logging.getLogger("dfmsd")


def unlabeled_records(folder: str | Path, known: Collection[Path] = ()) -> list[ImageRecord]:
    """List the images in a folder and its subfolders; only their headers are read.

    Args:
        folder: Of images; other files are passed over.
        known: Images to leave out: those of the data set itself.

    Returns:
        Records without boxes, in the order of their paths; ids are -1, -2, ...

    Raises:
        DfmsdError: There is no such folder, an image is broken, or none is left.
    """
    folder = Path(folder).expanduser()
    check_path("data.unlabeled", str(folder))
    if not folder.is_dir():
        raise DfmsdError(f"data.unlabeled: no folder {folder.absolute()}; give one with images in it")
    found = images_in(folder)
    own = {path.resolve() for path in known}
    paths = [path for path in found if path.resolve() not in own]
    if not paths:
        raise DfmsdError(
            f"data.unlabeled: {folder} holds {len(found)} images, none of them beside those of data.root; give a "
            "folder with others, or leave data.unlabeled out"
        )
    if len(paths) < len(found):
        logger.warning("%s: %d images are those of data.root and left out", folder, len(found) - len(paths))
    return [_record(-number, path) for number, path in enumerate(paths, 1)]


def _record(image_id: int, path: Path) -> ImageRecord:
    height, width = read_size(path)
    boxes, labels = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    return ImageRecord(image_id, path, height, width, boxes, labels, labeled=False)


class MixedSampler(EpochSampler):
    """Keys of batches that end with images without annotations.

    The others come as `EpochSampler` gives them, without those of a last, smaller batch. Those without annotations are
    gone through in a random order of the epoch, as often as it takes.

    Args:
        length: Number of images with annotations.
        unlabeled: Number of images without; their indices follow.
        batch_size: Images with annotations in a batch.
        extra: Images without, in addition.
        seed: At least 0.
        rank: This process.
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
        """Count this process's keys of an epoch."""
        return self.num_samples // self.batch_size * (self.batch_size + self.extra)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Walk through this process's part of the epoch."""
        own = list(super().__iter__())
        batches = len(own) // self.batch_size
        rng = np.random.default_rng((self.seed, self.epoch, self.unlabeled))
        need = batches * self.extra * self.num_replicas
        rounds = [rng.permutation(self.unlabeled) for _ in range(-(-need // self.unlabeled))]
        others = np.concatenate(rounds)[:need][self.rank :: self.num_replicas] + self.length
        added = [(self.epoch, index) for index in others.tolist()]
        return chain.from_iterable(
            own[i * self.batch_size : (i + 1) * self.batch_size] + added[i * self.extra : (i + 1) * self.extra]
            for i in range(batches)
        )
