"""Fuzz target: the readers of all formats must either read an input or refuse it in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from dfmsd.data import DetectionSplit, open_split
from dfmsd.errors import DfmsdError

SIDES = (40, 30)
TRUTH: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "0.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "deep/1.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 1, "name": "square"}, {"id": 3, "name": "disc"}],
    "annotations": [
        {"id": 7, "image_id": 1, "category_id": 3, "bbox": [2, 3.5, 20, 10], "area": 200.0, "iscrowd": 0},
        {"id": 8, "image_id": 2, "category_id": 1, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 1},
    ],
}
"""Valid annotation file for the images of `make_root`."""
SETTINGS = b"train: images\nnames: [square, disc]\n"
ROWS = b"1 .5 .5 .2 .2\n0 .1 .1 .9 .1 .9 .9\n"
Values = Callable[[], Any]


def make_root(root: Path) -> Path:
    """Write the images of `TRUTH`, and data in the layouts of YOLO and VOC in folders of their own."""
    for name in ("train/0.png", "train/deep/1.png", "yolo/images/0.png", "voc/train/0.png"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIDES).save(file)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "yolo" / "labels").mkdir(exist_ok=True)
    return root


def check(content: bytes, root: Path) -> DetectionSplit | None:
    """Read an input: an XML file if it begins with ``<``, a YAML file after ``#yaml``, rows after ``#rows``, else JSON.

    Returns:
        The data set, or None if the input was refused.
    """
    if content.startswith(b"<"):
        return check_split(root / "voc", root / "voc" / "train" / "0.xml", content)
    settings, labels = root / "yolo" / "data.yaml", root / "yolo" / "labels" / "0.txt"
    if content.startswith(b"#yaml"):
        labels.write_bytes(ROWS)
        return check_split(root / "yolo", settings, content)
    if content.startswith(b"#rows"):
        settings.write_bytes(SETTINGS)
        return check_split(root / "yolo", labels, content.removeprefix(b"#rows"))
    return check_split(root, root / "annotations" / "instances_train.json", content)


def check_split(root: Path, file: Path, content: bytes) -> DetectionSplit | None:
    """Write a file and read the train split; check it, or that the error is one line that names a file of it."""
    file.write_bytes(content)
    try:
        split = open_split(root, "train")
    except DfmsdError as error:
        message = str(error)
        assert any(name in message for name in (file.name, str(root), "data.root")), message
        assert "\n" not in message, message
        return None
    assert len(split) >= 1
    names = split.class_names
    assert len(set(names)) == len(names) == len(split.category_ids) >= 1
    assert all(name.encode() for name in names)
    for record in split.records:
        assert record.path.resolve().is_relative_to(root.resolve())
        assert (record.width, record.height) == SIDES
        boxes = record.boxes
        assert boxes.shape == (len(record.labels), 4)
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
        assert bool((boxes >= 0).all())
        assert bool((boxes[:, 0::2] <= 40).all())
        assert bool((boxes[:, 1::2] <= 30).all())
        assert all(0 <= label < len(names) for label in record.labels.tolist())
    json.dumps(split.ground_truth, allow_nan=False)
    return split


def changed(choose: Callable[[int], int], value: Any) -> bytes:
    """Replace a value of the valid file.

    Args:
        choose: Returns a number from 0 to below its argument, which is at least 1.
        value: JSON value.
    """
    raw: Any = copy.deepcopy(TRUTH)
    part: Any = raw
    while True:
        key = choose(len(part)) if isinstance(part, list) else list(part)[choose(len(part))]
        if not isinstance(part[key], dict | list) or not part[key] or choose(4) == 0:
            part[key] = value
            return json.dumps(raw).encode("utf-8", "replace")
        part = part[key]
