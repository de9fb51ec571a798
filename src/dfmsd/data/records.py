"""Image records of a data set, kept as columns, since a Python object for each annotation of COCO takes gigabytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfmsd.data.transforms import fitted_size
from dfmsd.types import Target


class ImageRecord(NamedTuple):
    """One image and its annotations."""

    id: int
    path: Path
    height: int
    width: int
    boxes: Tensor
    """float32, ``M x 4``, xyxy in original pixels, clipped to the image; without crowds and boxes of zero area."""
    labels: Tensor
    """int64, ``M``, indices into the class names."""
    labeled: bool = True
    """Whether the image has boxes to train on, its own or pseudo-labels; one with its own may contain no objects."""

    scores: Tensor | None = None
    """float32, ``M``, in 0..1: those of soft pseudo-labels."""

    @property
    def target(self) -> Target:
        """The boxes in original pixels, with their labels and scores."""
        target = Target(boxes=self.boxes, labels=self.labels)
        return target if self.scores is None else {**target, "scores": self.scores}


class Columns(NamedTuple):
    """Arrays of N images with M boxes in all; they may be memory maps."""

    ids: NDArray[np.int64]
    """``N``."""
    paths: NDArray[np.bytes_]
    """``N``, in the encoding of the file system."""
    sizes: NDArray[np.int32]
    """``N x 2``: height and width."""
    labeled: NDArray[np.bool_]
    """``N``."""
    counts: NDArray[np.int64]
    """``N``: boxes of each image."""
    boxes: NDArray[np.float32]
    """``M x 4``, in the order of the images."""
    labels: NDArray[np.int64]
    """``M``."""
    scores: NDArray[np.float32]
    """``M``; NaN for boxes without a score."""


class Records(Sequence[ImageRecord]):
    """A sequence of records that makes each one when it is asked for.

    Args:
        columns: The content of all records.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._starts = np.concatenate([[0], np.cumsum(columns.counts)])

    @classmethod
    def of(cls, records: Sequence[ImageRecord]) -> Records:
        """Return the records of a list."""
        if isinstance(records, Records):
            return records
        sizes = [(record.height, record.width) for record in records]
        boxes = torch.cat([torch.empty(0, 4), *(record.boxes for record in records)])
        labels = torch.cat([torch.empty(0, dtype=torch.int64), *(record.labels for record in records)])
        return cls(
            Columns(
                np.array([record.id for record in records], np.int64),
                encode_paths([record.path for record in records]),
                np.array(sizes, np.int32).reshape(-1, 2),
                np.array([record.labeled for record in records], np.bool_),
                np.array([len(record.boxes) for record in records], np.int64),
                boxes.numpy(),
                labels.numpy(),
                torch.cat([torch.empty(0), *map(_scores, records)]).numpy(),
            )
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.columns.ids)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | Records:
        """Return one record, or a part of the sequence."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        columns, place = self.columns, range(len(self))[index]
        rows = slice(self._starts[place], self._starts[place + 1])
        scores = torch.tensor(columns.scores[rows])
        height, width = columns.sizes[place].tolist()
        return ImageRecord(
            int(columns.ids[place]),
            Path(os.fsdecode(columns.paths[place])),
            height,
            width,
            torch.tensor(columns.boxes[rows]),  # a copy: the columns may be read-only
            torch.tensor(columns.labels[rows]),
            bool(columns.labeled[place]),
            scores if len(scores) and not scores.isnan().any() else None,
        )

    def take(self, places: NDArray[np.integer]) -> Records:
        """Return the records at these places, in their order."""
        columns, counts = self.columns, self.columns.counts[places]
        shifts = np.repeat(self._starts[places] - np.cumsum(counts) + counts, counts)
        rows = np.arange(counts.sum()) + shifts
        images = [column[places] for column in (columns.ids, columns.paths, columns.sizes, columns.labeled)]
        return Records(
            Columns._make([*images, counts, columns.boxes[rows], columns.labels[rows], columns.scores[rows]])
        )

    def __add__(self, others: Sequence[ImageRecord]) -> Records:
        """Return these records and others behind them."""
        pairs: Any = zip(self.columns, Records.of(others).columns, strict=True)
        return Records(Columns._make(np.concatenate(pair) for pair in pairs))

    def relabeled(self, lookup: NDArray[np.int64]) -> Records:
        """Return the records with the labels ``lookup[label]``."""
        return Records(self.columns._replace(labels=lookup[self.columns.labels]))

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [Path(os.fsdecode(path)) for path in self.columns.paths.tolist()]

    @property
    def owners(self) -> NDArray[np.int64]:
        """``M``: place of the image of each box."""
        return np.repeat(np.arange(len(self)), self.columns.counts)


def _scores(record: ImageRecord) -> Tensor:
    return torch.full((len(record.boxes),), torch.nan) if record.scores is None else record.scores


def encode_paths(paths: Iterable[Path]) -> NDArray[np.bytes_]:
    """Return paths as an array, in the encoding of the file system."""
    return np.array([os.fsencode(path) for path in paths], np.bytes_)


def box_sizes(records: Records, image_size: int) -> Tensor:
    """Return the square root of the area of every box, in pixels of the resized images.

    Args:
        records: Images.
        image_size: Longer side that images are resized to.
    """
    fitted = resized_sizes(records, image_size)
    scales = fitted.prod(axis=1) / records.columns.sizes.astype(np.int64).prod(axis=1)
    boxes = records.columns.boxes
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return torch.from_numpy(np.sqrt(scales[records.owners].astype(np.float32) * areas))


def resized_sizes(records: Records, image_size: int) -> NDArray[np.int64]:
    """Return height and width of every image after resizing, ``N x 2``.

    Args:
        records: Images.
        image_size: Longer side that images are resized to.
    """
    distinct, inverse = np.unique(records.columns.sizes, axis=0, return_inverse=True)
    fitted = [fitted_size(height, width, image_size) for height, width in distinct.tolist()]
    return np.array(fitted, np.int64).reshape(-1, 2)[inverse.reshape(-1)]
