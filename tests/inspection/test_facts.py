from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.helpers.annotations import edit
from tests.helpers.layouts import voc

import dfmsd
from dfmsd.data import DataConfig, open_split
from dfmsd.data.transforms import fit
from dfmsd.inspection.facts import gather
from dfmsd.inspection.tables import class_table, size_table, split_table


def test_numbers_are_those_of_the_annotation_files(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda raw: raw["annotations"][0].update(iscrowd=1))
    facts = gather(DataConfig(str(tiny_coco)))
    train = open_split(tiny_coco, "train")
    assert facts.layout.name == "COCO"
    assert list(facts.facts) == ["train", "val"]
    found = facts.facts["train"]
    assert (found.images, found.crowds) == (8, 1)
    assert found.empty == sum(not len(record.boxes) for record in train.records)
    labels = torch.cat([record.labels for record in train.records])
    assert found.objects == {"square": int((labels == 0).sum()), "disc": int((labels == 1).sum())}
    assert not facts.errors


def test_a_class_that_only_the_val_split_has_is_told_before_training_refuses_it(tiny_coco: Path) -> None:
    def drop_disc(raw: dict[str, Any]) -> None:
        kept = next(category for category in raw["categories"] if category["name"] == "square")
        raw["categories"] = [kept]
        raw["annotations"] = [entry for entry in raw["annotations"] if entry["category_id"] == kept["id"]]

    edit(tiny_coco, drop_disc)
    findings = gather(DataConfig(str(tiny_coco))).findings
    assert any("instances_val.json: objects of class disc here, which" in finding for finding in findings)


def test_sizes_are_those_after_resizing(tiny_coco: Path) -> None:
    sizes = gather(DataConfig(str(tiny_coco), image_size=128)).facts["val"].sizes
    split = open_split(tiny_coco, "val")
    boxes = torch.cat([fit(*split[index], 128).target["boxes"] for index in range(len(split))])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    torch.testing.assert_close(sizes, areas.sqrt(), rtol=1e-4, atol=1e-3)


def test_tables_agree_with_the_facts(tiny_coco: Path) -> None:
    facts = gather(DataConfig(str(tiny_coco)))
    _, splits = split_table(facts)
    header, classes = class_table(facts)
    assert header == ["class", "train", "val"]
    assert [row[0] for row in splits] == ["train", "val"]
    assert sum(int(row[1]) for row in classes) == int(splits[0][2])
    header, sizes = size_table(facts)
    assert header == ["object size", "level", "train", "val"]
    assert sum(int(row[2].rstrip("%")) for row in sizes) == pytest.approx(100, abs=3)  # rounded
    assert [row[1] for row in sizes] == ["p3"] * 4 + ["p4", "p5", "p6", "p7"]


def test_a_split_that_cannot_be_read_is_named_and_the_others_described(tiny_coco: Path) -> None:
    (tiny_coco / "annotations" / "instances_val.json").write_text("{")
    facts = dfmsd.inspect_data(tiny_coco)
    assert list(facts.facts) == ["train"]
    assert "instances_val.json" in facts.errors["val"]


def small(raw: dict[str, Any]) -> None:
    for annotation in raw["annotations"]:
        annotation["bbox"][2:] = [4, 4]


def whole(raw: dict[str, Any]) -> None:
    image = raw["images"][0]
    raw["annotations"][0].update(image_id=image["id"], bbox=[0, 0, image["width"], image["height"]])


def thin(raw: dict[str, Any]) -> None:
    raw["annotations"][0]["bbox"] = [0, 5, 60, 2]


def tiny(raw: dict[str, Any]) -> None:
    raw["annotations"][0]["bbox"][2] = 1


def twice(raw: dict[str, Any]) -> None:
    raw["annotations"] += [{**entry, "id": entry["id"] + 1000} for entry in raw["annotations"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (small, "objects are smaller than 8 pixels in images of 128"),
        (whole, "1 of 13 boxes cover the whole image: a label of the image, perhaps, the first in train_0.jpg"),
        (thin, "1 of 13 boxes are more than 20 times as long as wide"),
        (tiny, "1 of 13 boxes are less than 2 pixels wide or high"),
        (twice, "13 of 26 boxes repeat another one"),
        (lambda raw: raw["categories"].append({"id": 9, "name": "cells"}), "no annotation of class cells"),
    ],
    ids=["small", "whole", "thin", "tiny", "twice", "unused class"],
)
def test_what_looks_wrong_is_said(tiny_coco: Path, change: Any, message: str) -> None:
    edit(tiny_coco, change)
    findings = gather(DataConfig(str(tiny_coco), image_size=128)).findings
    assert any(message in finding for finding in findings), findings


def test_images_in_both_splits_are_found(tiny_coco: Path) -> None:
    shutil.copy(tiny_coco / "train" / "train_0.jpg", tiny_coco / "val" / "val_0.jpg")
    size = {key: open_split(tiny_coco, "train").ground_truth["images"][0][key] for key in ("width", "height")}
    edit(tiny_coco, lambda raw: raw["images"][0].update(size), "val")
    findings = gather(DataConfig(str(tiny_coco))).findings
    assert any("1 of 4 evaluation images are also training images" in finding for finding in findings)


def test_a_list_of_all_images_is_not_compared_with_its_parts(tmp_path: Path) -> None:
    root = voc(tmp_path / "data", year=".")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb (1)\nc.d\ne\n")
    Image.new("RGB", (64, 48), "red").save(root / "JPEGImages" / "e.png")
    facts = gather(DataConfig(str(root)))
    assert {name: split.images for name, split in facts.facts.items()} == {"train": 3, "val": 1, "trainval": 4}
    assert not [finding for finding in facts.findings if "also training" in finding or "trainval.txt" in finding]


def test_a_val_split_is_not_trained_on_where_train_cannot_be_read(tiny_coco: Path) -> None:
    (tiny_coco / "annotations" / "instances_train.json").write_text("{")
    edit(tiny_coco, lambda raw: raw["categories"].append({"id": 9, "name": "cells"}), "val")
    facts = gather(DataConfig(str(tiny_coco)))
    assert list(facts.errors) == ["train"]
    assert not any("train on" in finding or "does not have" in finding for finding in facts.findings)


def test_rare_classes_are_named(tiny_coco: Path) -> None:
    findings = gather(DataConfig(str(tiny_coco))).findings
    assert any("fewer than 10 objects of" in finding and "in val" in finding for finding in findings)


def test_warnings_of_the_readers_are_findings_instead_of_lines(
    tiny_coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(tiny_coco, lambda raw: raw["annotations"][0].update(bbox=[0, 0, 0, 5]))
    findings = gather(DataConfig(str(tiny_coco))).findings
    assert any("1 of 13 boxes have no area" in finding for finding in findings)
    assert not caplog.records
