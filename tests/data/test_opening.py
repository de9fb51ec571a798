from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.layouts import SPLITS, Picture, Splits, coco, roboflow_coco, roboflow_voc, voc

from dfmsd.data import CocoDataModule, DataConfig, open_split
from dfmsd.data.loading import split_loader
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.configfile import parse_config
from dfmsd.errors import DfmsdError


def config(root: Path, **values: Any) -> DataConfig:
    return DataConfig(str(root), image_size=64, batch_size=2, **values)


def test_a_split_may_be_named(tmp_path: Path) -> None:
    root = voc(tmp_path / "data", SPLITS | {"trainval": SPLITS["train"] | SPLITS["val"]})
    data = CocoDataModule(config(root, train="trainval"))
    assert len(data.train) == 4
    assert len(open_split(config(root, test="val"), "test")) == 1


def test_a_split_may_be_a_file_and_a_folder(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    (root / "annotations").rename(root / "labels")
    (root / "train").rename(root / "photos")
    files = {"annotations": "labels/instances_train.json", "images": "photos"}
    assert len(CocoDataModule(config(root, train=files, val=files)).train) == 3
    missing = {**files, "annotations": "labels/nothing.json"}
    with pytest.raises(DfmsdError, match=r"nothing\.json is missing"):
        open_split(config(root, train=missing), "train")


@pytest.mark.parametrize("value", ["", {}, {"annotations": "x.json"}, {"annotations": "a", "images": "b", "c": "d"}])
def test_a_value_that_names_no_split_is_refused(value: Any) -> None:
    with pytest.raises(DfmsdError, match=r"data\.val must be the name of a split or \{annotations"):
        DataConfig(val=value)


def test_the_keys_are_those_of_a_config_file() -> None:
    data = {"train": "trainval", "val": {"annotations": "a.json", "images": "b"}}
    parsed = parse_config(TrainConfig, {"data": data, "out": "x"}).data
    assert (parsed.train, parsed.val, parsed.test) == ("trainval", data["val"], None)


def test_the_message_about_a_missing_split_names_the_others(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", {"train": SPLITS["train"]})
    with pytest.raises(DfmsdError, match=r"data\.root: .* has no split val, only train; .*data\.val.*data\.holdout"):
        CocoDataModule(config(root))
    with pytest.raises(DfmsdError, match=r"data\.train: .* has no split whole, only train; .*data\.train"):
        CocoDataModule(config(root, train="whole"))


def damage(root: Path, split: str) -> None:
    (root / "annotations" / f"instances_{split}.json").write_text("nonsense")


def test_a_split_is_evaluated_without_the_others(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", SPLITS | {"test": SPLITS["train"]})
    damage(root, "train")
    assert [len(split_loader(config(root), split).dataset) for split in ("val", "test")] == [1, 3]  # type: ignore[arg-type]


def test_a_share_of_the_training_images_needs_no_val_split(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    damage(root, "val")
    data = CocoDataModule(config(root, holdout=0.5))
    assert len(data.train) + len(data.val) == 3
    held_out: Any = split_loader(config(root, holdout=0.5)).dataset
    assert [record.path for record in held_out.coco.records] == [record.path for record in data.val.coco.records]


def test_a_data_set_without_splits_is_divided(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", {"default": SPLITS["train"]})
    assert len(CocoDataModule(config(root, holdout=0.5)).train) in (1, 2)
    with pytest.raises(DfmsdError, match=r"has no split train, only default; .*data\.holdout"):
        CocoDataModule(config(root))


def test_one_line_says_what_was_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = roboflow_coco(tmp_path / "data", SPLITS | {"test": SPLITS["val"]})
    with caplog.at_level(logging.INFO, "dfmsd"):
        CocoDataModule(config(root))
    assert caplog.messages == [f"data: Roboflow COCO layout in {root}: 3 train, 1 val images; not opened: test"]


# Classes of two splits.


def categories(root: Path, split: str, *names: tuple[int, str]) -> None:
    """Give classes new ids and names; annotations keep the place in the list."""
    file = root / "annotations" / f"instances_{split}.json"
    raw = json.loads(file.read_text())
    place = {entry["id"]: entry["name"] for entry in raw["categories"]}
    ids = {name: key for key, name in names}
    raw["categories"] = [{"id": key, "name": name} for key, name in names]
    for annotation in raw["annotations"]:
        annotation["category_id"] = ids[place[annotation["category_id"]]]
    file.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "names", [[(1, "ray"), (2, "eel")], [(0, "cells"), (1, "ray"), (2, "eel")], [(5, "ray"), (9, "eel"), (7, "x")]]
)
def test_classes_that_differ_in_order_or_are_unused_are_matched_by_name(
    tmp_path: Path, names: list[tuple[int, str]]
) -> None:
    root = coco(tmp_path / "data")
    categories(root, "val", *names)
    data = CocoDataModule(config(root))
    assert data.class_names == data.val.coco.class_names == ("eel", "ray")
    assert [data.class_names[label] for label in data.val.coco.records[0].labels] == ["eel", "ray"]
    truth = data.val.coco.ground_truth
    name_of = {entry["id"]: entry["name"] for entry in truth["categories"]}
    assert [name_of[entry["category_id"]] for entry in truth["annotations"]] == ["eel", "ray"]
    assert [name_of[key] for key in data.val.coco.category_ids] == ["eel", "ray"]


def test_a_class_that_only_train_lists_gets_a_new_id(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", {"train": SPLITS["train"], "val": SPLITS["val"]})
    categories(root, "train", (1, "crab"), (2, "eel"), (3, "ray"))
    val = CocoDataModule(config(root)).val.coco
    assert val.class_names == ("crab", "eel", "ray")
    assert len(set(val.category_ids)) == 3


def test_classes_of_voc_are_those_of_both_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits: Splits = {
        "train": {"a": Picture(40, 40, [("ray", (1, 1, 20, 20))])},
        "val": {"b": Picture(40, 40, [("eel", (1, 1, 20, 20)), ("ray", (2, 2, 30, 30))])},
    }
    data = CocoDataModule(config(roboflow_voc(tmp_path / "data", splits)))
    assert data.class_names == ("eel", "ray")
    assert data.train.coco.records[0].labels.tolist() == [1]
    assert "no training image has eel" in caplog.text
