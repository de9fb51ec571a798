"""One split of a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dfmsd.data.formats.boxes import TOLERANCE
from dfmsd.data.formats.layout import Content, Entry, Source
from dfmsd.data.imagecheck import check_size
from dfmsd.data.images import read_image
from dfmsd.data.index import SplitContent, load_index, save_index
from dfmsd.data.records import Columns, ImageRecord, Records, encode_paths
from dfmsd.types import Target
from dfmsd.utils.heard import heard_warnings

logger = logging.getLogger("dfmsd")


class DetectionSplit(Dataset[tuple[Tensor, Target]]):
    """One split of a data set, read from any format.

    Class names come from the categories, sorted by id; label ``i`` stands for ``category_ids[i]``, so ids may have
    gaps. Images without boxes are kept. Item ``i`` is the decoded image (uint8, ``3 x H x W``, RGB, original size) and
    its target in original pixels.

    Args:
        source: The split; `open_split` finds it.

    Attributes:
        file: File or folder that messages about the split name.
        class_names: Name of each label.
        category_ids: Category id of each label.
        classes_listed: Whether the format lists the classes; otherwise they are those of the objects in this split.
        records: Images and boxes.
        truth: Annotations for COCO evaluation, crowds included.

    Raises:
        DfmsdError: Something is missing, malformed or contradictory; also when an image cannot be decoded later.
    """

    def __init__(self, source: Source) -> None:
        self.file = source.file
        fingerprint = source.fingerprint()
        content = None if fingerprint is None else load_index(source, fingerprint)
        if content is None:
            with heard_warnings(printed=True) as warnings:
                read = source.read()
                records = _to_records(read, self.file)
            names, ids = ([category[key] for category in read.categories] for key in ("name", "id"))
            content = SplitContent(names, ids, read.listed, warnings, records, read.truth)
            if fingerprint is not None:
                save_index(source, fingerprint, content)
        else:
            for warning in content.warnings:
                logger.warning("%s", warning)
        self.class_names = tuple(content.class_names)
        self.category_ids = tuple(content.category_ids)
        self.classes_listed = content.listed
        self.records = content.records
        self.truth = content.truth

    @property
    def listing(self) -> dict[str, list[Entry]]:
        """Images and categories as in a COCO file; new at every call."""
        columns = self.records.columns
        own = columns.ids > 0  # those of unlabeled images are negative
        images = zip(columns.ids[own].tolist(), columns.sizes[own].tolist(), strict=True)
        categories = sorted(zip(self.category_ids, self.class_names, strict=True))
        return {
            "images": [{"id": number, "width": width, "height": height} for number, (height, width) in images],
            "categories": [{"id": number, "name": name} for number, name in categories],
        }

    @property
    def ground_truth(self) -> dict[str, list[Entry]]:
        """Images, categories and annotations as in a COCO file, crowds included; new at every call."""
        return {**self.listing, "annotations": self.truth.entries(np.array(self.category_ids, np.int64))}

    def subset(self, places: Sequence[int] | NDArray[np.integer]) -> DetectionSplit:
        """Return a copy that contains only some of the images.

        Args:
            places: Indices of the images.
        """
        subset = copy(self)
        subset.records = self.records.take(np.array(places, np.int64))
        subset.truth = self.truth.take(np.isin(self.truth.images, subset.records.columns.ids))
        return subset

    def extended(self, records: Sequence[ImageRecord]) -> DetectionSplit:
        """Return a copy with more images appended; `truth` does not change."""
        return self.with_records(self.records + records)

    def with_records(self, records: Sequence[ImageRecord]) -> DetectionSplit:
        """Return a copy with these images; `truth` does not change."""
        changed = copy(self)
        changed.records = Records.of(records)
        return changed

    def relabeled(self, class_names: Sequence[str], category_ids: Sequence[int]) -> DetectionSplit:
        """Return a copy whose labels stand for other classes.

        Args:
            class_names: Names, which include every class that has an annotation in the split.
            category_ids: Category id of each name.
        """
        place = {name: label for label, name in enumerate(class_names)}
        lookup = np.array([place.get(name, -1) for name in self.class_names], np.int64)
        relabeled = copy(self)
        relabeled.class_names, relabeled.category_ids = tuple(class_names), tuple(category_ids)
        relabeled.records = self.records.relabeled(lookup)
        relabeled.truth = self.truth._replace(labels=lookup[self.truth.labels])
        return relabeled

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Decode image ``index``."""
        record = self.records[index]
        image = read_image(record.path)
        check_size(record, (image.shape[1], image.shape[2]), self.file)
        return image, record.target


def _to_records(content: Content, file: Path) -> Records:
    """Keep what can be trained on: no crowds, boxes clipped to their image, none without area."""
    ids = np.array([image["id"] for image in content.images], np.int64)
    order = np.argsort(ids)
    places = order[np.searchsorted(ids, content.truth.images, sorter=order)]
    used = np.flatnonzero(~content.truth.crowds)
    used = used[np.argsort(places[used], kind="stable")]
    images, labels = places[used], content.truth.labels[used]
    whole = content.truth.boxes[used]
    whole[:, 2:] += whole[:, :2]
    sizes = np.array([(image["height"], image["width"]) for image in content.images], np.int32).reshape(-1, 2)
    boxes = whole.clip(0, np.tile(sizes[images, ::-1], 2)).astype(np.float32)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    cut = int((keep & (abs(boxes - whole) > TOLERANCE).any(axis=1)).sum())
    if not keep.all():
        logger.warning(
            "%s: %d of %d boxes have no area inside their image: training leaves them out, but AP counts "
            "them as annotated",
            *(file, len(used) - keep.sum(), len(used)),
        )
    if cut:
        logger.warning(
            "%s: %d of %d boxes reach more than %.0f pixels beyond their image: training cuts them off there, AP "
            "does not",
            *(file, cut, len(used), TOLERANCE),
        )
    return Records(
        Columns(
            ids,
            encode_paths(image["path"] for image in content.images),
            sizes,
            np.ones(len(sizes), np.bool_),
            np.bincount(images[keep], minlength=len(sizes)),
            boxes[keep],
            labels[keep],
            np.full(keep.sum(), np.nan, np.float32),
        )
    )
