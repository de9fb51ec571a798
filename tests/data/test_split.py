from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.annotations import Edit, change, edit

from dfmsd.data import open_split
from dfmsd.errors import DfmsdError


def set_boxes(*boxes: list[float], **extra: object) -> Edit:
    """Replace all annotations by these boxes of category 3 in the first image."""
    return lambda raw: raw.update(
        annotations=[
            {"id": i, "image_id": raw["images"][0]["id"], "category_id": 3, "bbox": box, **extra}
            for i, box in enumerate(boxes)
        ]
    )


def test_classes_come_from_the_categories_sorted_by_id_with_gaps(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda raw: raw["categories"].reverse())
    coco = open_split(tiny_coco, "train")
    assert coco.class_names == ("square", "disc")
    assert coco.category_ids == (1, 3)


def test_item_is_the_decoded_image_with_xyxy_boxes_and_contiguous_labels(tiny_coco: Path) -> None:
    coco = open_split(tiny_coco, "train")
    raw = json.loads((tiny_coco / "annotations" / "instances_train.json").read_text())
    for index, entry in enumerate(raw["images"]):
        image, target = coco[index]
        pixels = np.array(Image.open(tiny_coco / "train" / entry["file_name"]))
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
        own = [a for a in raw["annotations"] if a["image_id"] == entry["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        assert target["boxes"].tolist() == corners
        assert target["labels"].tolist() == [{1: 0, 3: 1}[a["category_id"]] for a in own]


def test_an_image_without_boxes_is_kept(tiny_coco: Path) -> None:
    coco = open_split(tiny_coco, "train")
    _, target = coco[7]
    assert len(coco) == 8
    assert target["boxes"].shape == (0, 4)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_boxes_are_clipped_and_empty_ones_dropped_with_a_warning_each(
    tiny_coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    width = open_split(tiny_coco, "train").records[0].width
    partly_out = [-5.0, -5.0, 15.0, 25.0]
    edit(tiny_coco, set_boxes(partly_out, [3, 3, 0, 5], [width + 1, 0, 9, 9], [9, 9, -4, 4]))
    with caplog.at_level(logging.WARNING, "dfmsd"):
        coco = open_split(tiny_coco, "train")
    assert coco.records[0].boxes.tolist() == [[0, 0, 10, 20]]
    assert coco.records[0].labels.tolist() == [1]
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "3 of 4 boxes have no area inside their image: training leaves them out, but AP counts them as annotated",
        "1 of 4 boxes reach more than 2 pixels beyond their image: training cuts them off there, AP does not",
    ]


def test_crowds_are_in_the_ground_truth_but_not_in_the_targets(tiny_coco: Path) -> None:
    edit(tiny_coco, set_boxes([2, 2, 10, 10], iscrowd=1))
    coco = open_split(tiny_coco, "train")
    assert len(coco.records[0].labels) == 0
    assert [a["iscrowd"] for a in coco.ground_truth["annotations"]] == [1]


def test_ground_truth_fills_in_a_missing_area(tiny_coco: Path) -> None:
    edit(tiny_coco, set_boxes([2, 2, 10, 20]))
    assert open_split(tiny_coco, "train").ground_truth["annotations"][0]["area"] == 200


def test_missing_images_are_counted_and_the_first_is_named(tiny_coco: Path) -> None:
    for index in (2, 5):
        (tiny_coco / "train" / f"train_{index}.jpg").unlink()
    with pytest.raises(DfmsdError, match=r"2 of the 8 images .* are missing: train_2.jpg, train_5.jpg"):
        open_split(tiny_coco, "train")


def test_a_missing_image_folder_counts_as_missing_images(tiny_coco: Path) -> None:
    shutil.rmtree(tiny_coco / "train")
    with pytest.raises(DfmsdError, match="8 of the 8 images"):
        open_split(tiny_coco, "train")


def test_images_may_be_in_subfolders(tiny_coco: Path) -> None:
    (tiny_coco / "train" / "a").mkdir()
    (tiny_coco / "train" / "train_0.jpg").rename(tiny_coco / "train" / "a" / "train_0.jpg")
    edit(tiny_coco, change("images", file_name="a/train_0.jpg"))
    assert open_split(tiny_coco, "train")[0][0].shape[0] == 3


def test_the_error_about_a_missing_root_names_the_formats_and_the_digits(tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"no folder .*nowhere; .*COCO, YOLO .*`digits`"):
        open_split(tmp_path / "nowhere", "train")


def test_the_error_about_a_missing_split_names_those_that_are_there(tiny_coco: Path) -> None:
    with pytest.raises(DfmsdError, match=r"tiny_coco \(COCO layout\) has no split test, only train, val"):
        open_split(tiny_coco, "test")


def test_a_wrong_image_size_in_the_annotation_file_is_refused(tiny_coco: Path) -> None:
    edit(tiny_coco, change("images", width=11, height=12))
    with pytest.raises(DfmsdError, match=r"train_0.jpg is .* says 11 x 12; .*image id 1"):
        open_split(tiny_coco, "train")


def test_a_broken_image_is_refused_by_name(tiny_coco: Path) -> None:
    file = tiny_coco / "train" / "train_0.jpg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DfmsdError, match=r"train_0.jpg: cannot be decoded"):
        open_split(tiny_coco, "train")[0]
