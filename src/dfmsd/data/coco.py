"""Read and check a data set in the COCO layout."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfmsd.data.imagecheck import UNWRITABLE, check_files, check_names, check_size, check_sizes
from dfmsd.data.images import read_image
from dfmsd.errors import DfmsdError
from dfmsd.types import Target
from dfmsd.utils.files import check_path

logger = logging.getLogger("dfmsd")

CONVERT_HINT = "`dfmsd convert` makes it from VOC or YOLO data"
LARGEST_ID = 2**63 - 1
"""The evaluation takes 64-bit integers."""
FARTHEST = 1e9
"""Pixels: what no box reaches, and what products of two sides stay exact numbers below."""


class ImageRecord(NamedTuple):
    """What the annotation file says of one image."""

    id: int
    path: Path
    height: int
    width: int
    boxes: Tensor
    """float32, ``M x 4``, xyxy in original pixels, inside the image, no crowds, no zero areas."""
    labels: Tensor
    """int64, ``M``, indices into the class names."""
    labeled: bool = True
    """False where nobody has looked for objects."""


class CocoDetection(Dataset[tuple[Tensor, Target]]):
    """One split of ``root/annotations/instances_{split}.json`` + ``root/{split}/``, wholly checked when it is opened.

    Class names come from the file's ``categories``, sorted by id; label ``i`` is ``category_ids[i]``, so ids may
    have gaps. Images without boxes are kept. Item ``i`` is the decoded image (uint8, ``3 x H x W``, RGB, original size)
    and its target in original pixels.

    Args:
        root: Folder of the data set.
        split: ``train`` or ``val``.

    Raises:
        DfmsdError: Something is missing, malformed or contradictory, down to the size of every image; later, when an
            image cannot be decoded.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root).expanduser()
        self.file = _annotation_file(root, split)
        raw = _read_json(self.file)
        categories = sorted(_entries(raw, "categories", self.file), key=lambda category: category["id"])
        images = _entries(raw, "images", self.file)
        annotations = _entries(raw, "annotations", self.file)
        for key, entries in (("categories", categories), ("images", images)):
            if not entries:
                raise DfmsdError(
                    f"{self.file}: `{key}` is empty; list at least one, or point data.root at another folder"
                )
        self.class_names = _class_names(categories, self.file)
        self.category_ids: tuple[int, ...] = tuple(category["id"] for category in categories)
        check_names(images, root / split, self.file)
        check_files([image["file_name"] for image in images], root / split, root, self.file)
        _check_annotations(annotations, {image["id"] for image in images}, set(self.category_ids), self.file)
        self.records = _records(images, annotations, self.category_ids, root / split, self.file)
        check_sizes(self.records, self.file)
        self.ground_truth: dict[str, list[dict[str, Any]]] = _ground_truth(images, annotations, categories)
        """What COCO evaluation needs of the file, crowds included."""

    def part(self, keep: Callable[[ImageRecord], bool]) -> CocoDetection:
        """Give the split that holds these images only."""
        part = copy(self)
        part.records = [record for record in self.records if keep(record)]
        kept = {record.id for record in part.records}
        part.ground_truth = {
            "images": [image for image in self.ground_truth["images"] if image["id"] in kept],
            "categories": self.ground_truth["categories"],
            "annotations": [entry for entry in self.ground_truth["annotations"] if entry["image_id"] in kept],
        }
        return part

    def joined(self, records: Sequence[ImageRecord]) -> CocoDetection:
        """Give the split with more images behind its own; its `ground_truth` stays."""
        joined = copy(self)
        joined.records = [*self.records, *records]
        return joined

    def __len__(self) -> int:
        """Count the images."""
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Decode image ``index``."""
        record = self.records[index]
        image = read_image(record.path)
        check_size(record, (image.shape[1], image.shape[2]), self.file)
        return image, Target(boxes=record.boxes, labels=record.labels)


def _annotation_file(root: Path, split: str) -> Path:
    check_path("data.root", str(root))
    if not root.is_dir():
        raise DfmsdError(
            f"data.root: no folder {root.absolute()}; give a folder in the COCO layout "
            "(annotations/instances_train.json, train/, ...), or `digits` for the embedded data set"
        )
    file = root / "annotations" / f"instances_{split}.json"
    if not file.is_file():
        raise DfmsdError(
            f"data.root: {file} is missing; put the COCO annotations of the {split} images there; {CONVERT_HINT}"
        )
    return file


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except (OSError, ValueError, RecursionError) as error:
        raise DfmsdError(f"{file}: not valid JSON ({error}); write the file again") from error
    if not isinstance(raw, dict):
        raise DfmsdError(
            f"{file}: expected a JSON object with images, annotations, categories, got a {type(raw).__name__}"
        )
    return raw


def _entries(raw: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    """Give ``raw[key]``, a list of objects with unique integer ids."""
    entries = raw.get(key)
    if not isinstance(entries, list):
        raise DfmsdError(
            f"{file}: no list `{key}`; a COCO detection file has images, annotations and categories; {CONVERT_HINT}"
        )
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or abs(entry["id"]) > LARGEST_ID:
            raise DfmsdError(f"{file}: {key}[{position}] has no integer `id` of 64 bits; give every entry its own")
    _check_unique((entry["id"] for entry in entries), f"{key} id", file)
    return entries


def _check_unique(values: Iterable[Hashable], what: str, file: Path) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise DfmsdError(f"{file}: {what} {value!r} occurs more than once; make it unique")
        seen.add(value)


def _class_names(categories: list[dict[str, Any]], file: Path) -> tuple[str, ...]:
    for category in categories:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise DfmsdError(f"{file}: category id {category['id']} has no `name`; name it")
        if UNWRITABLE.search(category["name"]):
            raise DfmsdError(
                f"{file}: category id {category['id']}: name {category['name']!r} holds control characters; rename it"
            )
    names: tuple[str, ...] = tuple(category["name"] for category in categories)
    _check_unique(names, "category name", file)
    return names


def _check_annotations(
    annotations: list[dict[str, Any]], image_ids: Collection[int], category_ids: Collection[int], file: Path
) -> None:
    for annotation in annotations:
        where = f"{file}: annotation id {annotation['id']}"
        for key, known in (("image_id", image_ids), ("category_id", category_ids)):
            value = annotation.get(key)
            if type(value) is not int or value not in known:
                raise DfmsdError(f"{where} has the unknown {key} {value!r}; correct or remove it")
        box, area, crowd = (annotation.get(key) for key in ("bbox", "area", "iscrowd"))
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(side, FARTHEST) for side in box)):
            raise DfmsdError(f"{where}: bbox {box!r} is not 4 finite numbers [x, y, width, height]; correct it")
        if area is not None and not (_is_number(area, FARTHEST**2) and area >= 0):
            raise DfmsdError(f"{where}: area {area!r} is not a number of pixels; correct it or leave it out")
        if crowd not in (None, 0, 1):
            raise DfmsdError(f"{where}: iscrowd {crowd!r} is not 0 or 1; correct it or leave it out")


def _is_number(value: object, largest: float) -> bool:
    """Whether a value is a number that is finite and not absurd; comparing takes integers of any length."""
    return type(value) in (int, float) and -largest <= value <= largest  # type: ignore[operator]


def _records(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    category_ids: tuple[int, ...],
    folder: Path,
    file: Path,
) -> list[ImageRecord]:
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            of_image[annotation["image_id"]].append(annotation)
    records, dropped = [], 0
    for image in images:
        own = of_image[image["id"]]
        boxes = np.array([annotation["bbox"] for annotation in own], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, (image["width"], image["height"]) * 2).astype(np.float32)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        dropped += int((~keep).sum())
        labels = np.array([label_of[annotation["category_id"]] for annotation in own], dtype=np.int64)
        records.append(
            ImageRecord(
                image["id"],
                folder / image["file_name"],
                image["height"],
                image["width"],
                torch.from_numpy(boxes[keep]),
                torch.from_numpy(labels[keep]),
            )
        )
    if dropped:
        logger.warning("%s: %d boxes without area or wholly outside their image are not trained on", file, dropped)
    return records


def _ground_truth(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    return {
        "images": [{key: image[key] for key in ("id", "width", "height")} for image in images],
        "categories": [{key: category[key] for key in ("id", "name")} for category in categories],
        "annotations": [
            {
                "id": number,  # ours, from 1: the evaluation takes id 0 for "no match"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": annotation.get("area") or annotation["bbox"][2] * annotation["bbox"][3],
                "iscrowd": int(bool(annotation.get("iscrowd"))),
            }
            for number, annotation in enumerate(annotations, 1)
        ],
    }
