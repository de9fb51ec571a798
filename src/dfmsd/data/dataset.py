"""Detection data set whose random draws depend on (seed, epoch, index) only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfmsd.data.augmentation import Augmentation
from dfmsd.data.records import ImageRecord
from dfmsd.data.shards import file_stamp
from dfmsd.data.split import DetectionSplit
from dfmsd.data.targets import moved
from dfmsd.data.transforms import Sample, fit, fitted_size, pixel_digest, resize_boxes
from dfmsd.utils.store import Store


class DetectionDataset(Dataset[Sample]):
    """A COCO split, resized and augmented.

    ``dataset[epoch, index]`` is image ``index`` as augmented in epoch ``epoch``; ``dataset[index]`` is that of epoch 0.
    Two runs with the same seed see the same data, whatever the state of global generators, the number of workers and
    whether the run was resumed.

    Args:
        coco: Images and boxes.
        image_size: Longer side after resizing, in pixels.
        augmentation: Applied to each sample; None for evaluation.
        cache: Keep resized images in the RAM of this process, as uint8.
        store: Where to keep resized images, if anywhere, to share them with other processes and runs.
        digest: Compute the digest of each sample, which is the key of feature caches.
        seed: At least 0.
        pool: Number of augmented versions of each image, which the epochs take in turn; None makes new ones in every
            epoch.
        larger: The same data set with a larger `image_size`, whose images become the samples' ``larger`` ones, and
            whose digests the samples'.
    """

    def __init__(
        self,
        coco: DetectionSplit,
        image_size: int,
        augmentation: Augmentation | None = None,
        *,
        cache: bool = False,
        store: Store | None = None,
        digest: bool = False,
        seed: int = 0,
        pool: int | None = None,
        larger: DetectionDataset | None = None,
    ) -> None:
        self.coco = coco
        self.image_size = image_size
        self.augmentation = augmentation
        self.store = store
        self.digest = digest
        self.seed = seed
        self.pool = pool
        self.larger = larger
        self._labeled = int(coco.records.columns.labeled.sum())
        self._cache: dict[int, Sample] | None = {} if cache else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.coco)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return one sample; the key is ``index`` or ``(epoch, index)``."""
        sample = self._augmented(key)
        if self.larger is None:
            return sample
        twin = self.larger[key]
        return sample._replace(larger=twin.image, digest=twin.digest)

    def _augmented(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        sample = self._resized(index)
        if self.augmentation is None:
            return sample
        version = epoch % self.pool if self.pool else epoch
        rng = np.random.default_rng((self.seed, version, index))

        def partners(count: int) -> list[Sample]:
            return [self._resized(int(other)) for other in rng.integers(self._labeled, size=count)]

        augmented = self.augmentation(sample, rng, epoch, partners if sample.labeled else None)
        if self.digest and self.pool and augmented.digest is None:
            augmented = augmented._replace(digest=pixel_digest(augmented.image))
        return augmented

    def _resized(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self._load(index)._replace(labeled=bool(self.coco.records.columns.labeled[index]))
        if self.digest:
            sample = sample._replace(digest=pixel_digest(sample.image))
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def _load(self, index: int) -> Sample:
        record = self.coco.records[index]
        if self.store is None:
            return fit(*self.coco[index], self.image_size, record.id)
        try:
            key = file_key(record.path, self.image_size)
        except FileNotFoundError:  # decoding reports it
            return fit(*self.coco[index], self.image_size, record.id)
        image = (self.store.get(key) or {}).get("image")
        if _is_image(image, fitted_size(record.height, record.width, self.image_size)):
            return _restore(image.permute(2, 0, 1), record)
        sample = fit(*self.coco[index], self.image_size, record.id)
        self.store.put(key, {"image": sample.image.permute(1, 2, 0).contiguous()})
        return sample


def file_key(path: Path, image_size: int) -> str:
    """Hash what a resized image depends on without reading it: path, size and time of its file, and `image_size`."""
    changed, size = file_stamp(path)
    content = f"{path.absolute()} {changed} {size} {image_size}"
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _is_image(stored: Tensor | None, size: tuple[int, int]) -> TypeGuard[Tensor]:
    return stored is not None and stored.dtype == torch.uint8 and stored.shape == (*size, 3)


def _restore(image: Tensor, record: ImageRecord) -> Sample:
    """Return the sample that `fit` made, given its image."""
    height, width = image.shape[-2:]
    boxes = resize_boxes(record.boxes, (record.height, record.width), (height, width))
    scale = (height / record.height, width / record.width)
    return Sample(image, moved(record.target, boxes), scale, record.id)
