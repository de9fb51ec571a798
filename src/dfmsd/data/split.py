"""One split of a data set."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfmsd.data.formats.boxes import TOLERANCE
from dfmsd.data.formats.layout import Content, Entry, Source
from dfmsd.data.imagecheck import check_size
from dfmsd.data.images import read_image
from dfmsd.data.records import ImageRecord
from dfmsd.types import Target

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
        ground_truth: Images, categories and annotations for COCO evaluation, crowds included.

    Raises:
        DfmsdError: Something is missing, malformed or contradictory; also when an image cannot be decoded later.
    """

    def __init__(self, source: Source) -> None:
        content = source.read()
        self.file = source.file
        self.class_names: tuple[str, ...] = tuple(category["name"] for category in content.categories)
        self.category_ids: tuple[int, ...] = tuple(category["id"] for category in content.categories)
        self.classes_listed = content.listed
        self.records = _to_records(content, self.file)
        self.ground_truth = _to_ground_truth(content)

    def subset(self, keep: Callable[[ImageRecord], bool]) -> DetectionSplit:
        """Return a copy that contains only the images for which ``keep`` is true."""
        subset = copy(self)
        subset.records = [record for record in self.records if keep(record)]
        ids = {record.id for record in subset.records}
        subset.ground_truth = {
            "images": [image for image in self.ground_truth["images"] if image["id"] in ids],
            "categories": self.ground_truth["categories"],
            "annotations": [entry for entry in self.ground_truth["annotations"] if entry["image_id"] in ids],
        }
        return subset

    def extended(self, records: Sequence[ImageRecord]) -> DetectionSplit:
        """Return a copy with more images appended; `ground_truth` does not change."""
        return self.with_records([*self.records, *records])

    def with_records(self, records: Sequence[ImageRecord]) -> DetectionSplit:
        """Return a copy with these images; `ground_truth` does not change."""
        changed = copy(self)
        changed.records = [*records]
        return changed

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Decode image ``index``."""
        record = self.records[index]
        image = read_image(record.path)
        check_size(record, (image.shape[1], image.shape[2]), self.file)
        return image, record.target


def _to_records(content: Content, file: Path) -> list[ImageRecord]:
    label_of = {category["id"]: label for label, category in enumerate(content.categories)}
    annotations_of: dict[int, list[Entry]] = defaultdict(list)
    for annotation in content.annotations:
        if not annotation.get("iscrowd"):
            annotations_of[annotation["image_id"]].append(annotation)
    records, dropped, cut = [], 0, 0
    for image in content.images:
        annotations = annotations_of[image["id"]]
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        whole = boxes
        boxes = boxes.clip(0, (image["width"], image["height"]) * 2).astype(np.float32)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        dropped += int((~keep).sum())
        cut += int((keep & (abs(boxes - whole) > TOLERANCE).any(axis=1)).sum())
        labels = np.array([label_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        records.append(
            ImageRecord(
                image["id"],
                image["path"],
                image["height"],
                image["width"],
                torch.from_numpy(boxes[keep]),
                torch.from_numpy(labels[keep]),
            )
        )
    if dropped:
        logger.warning("%s: %d boxes without area or outside their image are not used for training", file, dropped)
    if cut:
        logger.warning(
            "%s: %d boxes reach more than %.0f pixels beyond their image and are cut off there", file, cut, TOLERANCE
        )
    return records


def _to_ground_truth(content: Content) -> dict[str, list[Entry]]:
    return {
        "images": [{key: image[key] for key in ("id", "width", "height")} for image in content.images],
        "categories": [{key: category[key] for key in ("id", "name")} for category in content.categories],
        "annotations": [
            {
                "id": number,  # renumbered from 1: COCO evaluation treats id 0 as "no match"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": annotation.get("area") or annotation["bbox"][2] * annotation["bbox"][3],
                "iscrowd": int(bool(annotation.get("iscrowd"))),
            }
            for number, annotation in enumerate(content.annotations, 1)
        ],
    }
