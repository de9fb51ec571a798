from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.helpers.annotations import edit

from dfmsd.data import open_split, splitcheck
from dfmsd.data.splitcheck import annotated_classes, check_measurable, check_trainable, find_copies, warn_of_contents
from dfmsd.errors import DfmsdError

Warned = Callable[[], list[str]]


@pytest.fixture
def warned(tiny_coco: Path, caplog: pytest.LogCaptureFixture) -> Warned:
    """Warn of the contents of `tiny_coco` as it is now; return the messages."""

    def warn() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dfmsd"):
            warn_of_contents(open_split(tiny_coco, "train"), open_split(tiny_coco, "val"))
        return [record.getMessage() for record in caplog.records]

    return warn


def as_crowds(raw: dict[str, Any]) -> None:
    for annotation in raw["annotations"]:
        annotation["iscrowd"] = 1


def without_area(raw: dict[str, Any]) -> None:
    as_crowds(raw)
    raw["annotations"][0].update(iscrowd=0, bbox=[5, 5, 0, 9])


def copy_image(root: Path, name: str, new: str, split: str = "train", to: str = "train") -> None:
    """Add a copy of an image under another name, without boxes."""
    shutil.copy(root / split / name, root / to / new)
    width, height = Image.open(root / to / new).size
    edit(root, lambda raw: raw["images"].append({"id": 99, "file_name": new, "width": width, "height": height}), to)


def test_a_usual_data_set_is_accepted_in_silence(tiny_coco: Path, warned: Warned) -> None:
    train = open_split(tiny_coco, "train")
    check_trainable(train)
    check_measurable(train)
    assert annotated_classes([train]) == ["square", "disc"]
    assert warned() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw["annotations"].clear(), "its 8 images have none"),
        (as_crowds, r"all \d+ are iscrowd"),
        (without_area, r"of \d+, \d+ are iscrowd and the others have no area inside their image"),
    ],
    ids=["empty", "crowds", "without area"],
)
def test_a_split_without_objects_is_refused_with_the_reason(tiny_coco: Path, change: Any, reason: str) -> None:
    edit(tiny_coco, change)
    train = open_split(tiny_coco, "train")
    with pytest.raises(DfmsdError, match=rf"instances_train\.json: no annotation to train on; {reason}: annotate"):
        check_trainable(train)
    with pytest.raises(DfmsdError, match=f"no annotated object, so no AP can be measured; {reason}: annotate"):
        check_measurable(train)


def test_the_first_images_alone_may_have_no_object(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda raw: raw["images"].insert(0, raw["images"].pop()))  # the last image has no box
    train = open_split(tiny_coco, "train")
    with pytest.raises(DfmsdError, match="no annotated object in the first 1 of 8 images, so no AP can be measured"):
        check_measurable(train, limit=1)
    check_measurable(train, limit=2)


def test_a_class_without_objects_is_named(tiny_coco: Path, warned: Warned) -> None:
    for split in ("train", "val"):
        edit(tiny_coco, lambda raw: raw["categories"].insert(0, {"id": 0, "name": "cells"}), split)
    assert annotated_classes([open_split(tiny_coco, "train")]) == ["square", "disc"]
    (message,) = warned()
    assert message.endswith(
        "instances_train.json: no annotation of class cells to train on; remove categories that are no classes"
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_objects_is_named(tiny_coco: Path, warned: Warned, split: str) -> None:
    edit(tiny_coco, as_crowds, split)
    (message,) = warned()
    assert f"instances_{split}.json: no annotated object; all " in message


def test_classes_that_differ_in_capitals_only_are_named(tiny_coco: Path, warned: Warned) -> None:
    for split in ("train", "val"):
        edit(tiny_coco, lambda raw: raw["categories"][0].update(name="Disc"), split)
    assert any(
        "json: classes disc, Disc differ in capitals only" in message.replace("Disc, disc", "disc, Disc")
        for message in warned()
    )


def test_repeated_boxes_are_counted(tiny_coco: Path, warned: Warned) -> None:
    counts = []

    def twice(raw: dict[str, Any]) -> None:
        counts.append(len(raw["annotations"]))
        raw["annotations"] += [{**entry, "id": 100 + entry["id"]} for entry in raw["annotations"]]

    edit(tiny_coco, twice)
    (message,) = warned()
    assert f"{counts[0]} of {2 * counts[0]} boxes repeat another one of the same class in the same image" in message
    assert "the first in train_0.jpg" in message


def test_equal_boxes_of_two_classes_are_no_repeats(tiny_coco: Path, warned: Warned) -> None:
    def other(raw: dict[str, Any]) -> None:
        first = raw["annotations"][0]
        raw["annotations"].append({**first, "id": 100, "category_id": 4 - first["category_id"]})

    edit(tiny_coco, other)
    assert warned() == []


def test_a_file_listed_twice_is_named(tiny_coco: Path, warned: Warned) -> None:
    edit(tiny_coco, lambda raw: raw["images"].append({**raw["images"][2], "id": 99}))
    (message,) = warned()
    assert message.endswith("1 image files are listed more than once, the first is train_2.jpg: merge their entries")


def test_one_image_under_two_names_is_named(tiny_coco: Path, warned: Warned) -> None:
    copy_image(tiny_coco, "train_3.jpg", "other.jpg")
    (message,) = warned()
    assert "1 images are copies of others under another name, the first is other.jpg of train_3.jpg" in message


def test_training_images_among_those_of_the_evaluation_are_named(tiny_coco: Path, warned: Warned) -> None:
    copy_image(tiny_coco, "train_3.jpg", "seen.jpg", to="val")
    (message,) = warned()
    assert "instances_val.json: 1 of 5 evaluation images are also training images, the first is " in message
    assert f"{tiny_coco / 'val' / 'seen.jpg'} as {tiny_coco / 'train' / 'train_3.jpg'}: AP on them" in message


def test_one_folder_for_both_splits_is_noticed(tiny_coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = open_split(tiny_coco, "train")
    warn_of_contents(train, train)
    assert "8 of 8 evaluation images are also training images" in caplog.text


def test_only_files_that_may_be_equal_are_read(tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without compression have files of one size: those that differ early are not read to their end."""
    images = []
    for number, colour in enumerate([10, 20, 30, 30]):
        Image.new("L", (200, 200), colour).save(tiny_coco / "train" / f"{number}.bmp")
        images.append({"id": number, "file_name": f"{number}.bmp", "width": 200, "height": 200})
    edit(tiny_coco, lambda raw: raw.update(images=images, annotations=[]))
    train, read = open_split(tiny_coco, "train"), []
    digest = splitcheck._digest

    def record(path: Path, size: int, *, whole: bool) -> bytes:
        read.extend([path.name] if whole else [])
        return digest(path, size, whole=whole)

    monkeypatch.setattr(splitcheck, "_digest", record)
    (group,) = find_copies([train.records])
    assert [path.name for path in group] == ["2.bmp", "3.bmp"]
    assert sorted(read) == ["2.bmp", "3.bmp"]


def test_files_that_differ_between_the_pieces_are_no_copies(tiny_coco: Path) -> None:
    images = []
    for number in range(2):
        image = Image.new("L", (300, 300))
        image.putpixel((5, 80), number)
        image.save(tiny_coco / "train" / f"{number}.bmp")
        images.append({"id": number, "file_name": f"{number}.bmp", "width": 300, "height": 300})
    (tiny_coco / "annotations" / "instances_train.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "square"}]})
    )
    assert find_copies([open_split(tiny_coco, "train").records]) == []
