from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dfmsd.data import open_split
from dfmsd.data.formats import recognize
from dfmsd.errors import DfmsdError

Moves = dict[str, str]
LAYOUTS: dict[str, tuple[str, list[str], Moves]] = {
    "COCO": ("COCO", ["train", "val"], {}),
    "COCO's own": (
        "COCO",
        ["train2017", "val2017"],
        {
            "annotations/instances_train.json": "annotations/instances_train2017.json",
            "annotations/instances_val.json": "annotations/instances_val2017.json",
            "train": "train2017",
            "val": "images/val2017",
        },
    ),
    "folders in images": ("COCO", ["train", "val"], {"train": "images/train", "val": "images/val"}),
    "plain names": (
        "COCO",
        ["train", "valid"],
        {
            "annotations/instances_train.json": "annotations/train.json",
            "annotations/instances_val.json": "annotations/valid.json",
        },
    ),
    "a capital": ("COCO", ["train", "val"], {"annotations": "Annotations"}),
    "no folder": (
        "COCO",
        ["train", "valid"],
        {
            "annotations/instances_train.json": "train.json",
            "annotations/instances_val.json": "valid.json",
        },
    ),
    "Roboflow": (
        "Roboflow COCO",
        ["train", "valid"],
        {
            "annotations/instances_train.json": "train/_annotations.coco.json",
            "annotations/instances_val.json": "val/_annotations.coco.json",
            "val": "valid",
        },
    ),
}
SINGLE: dict[str, tuple[str, Moves]] = {
    "CVAT": (
        "CVAT COCO",
        {"annotations/instances_train.json": "annotations/instances_default.json", "train": "images"},
    ),
    "CVAT with a folder": (
        "CVAT COCO",
        {"annotations/instances_train.json": "annotations/instances_default.json", "train": "images/default"},
    ),
    "Label Studio": (
        "Label Studio COCO",
        {"annotations/instances_train.json": "result.json", "train": "images"},
    ),
}


def move(root: Path, moves: Moves) -> Path:
    for source, target in moves.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / source, root / target)
    if (root / "annotations").is_dir() and not any((root / "annotations").iterdir()):
        (root / "annotations").rmdir()
    return root


@pytest.mark.parametrize(("name", "splits", "moves"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_are_recognized_and_read(tiny_coco: Path, name: str, splits: list[str], moves: Moves) -> None:
    before = {split: open_split(tiny_coco, split).ground_truth for split in ("train", "val")}
    layout = recognize(move(tiny_coco, moves))
    assert (layout.name, list(layout.sources)) == (name, splits)
    assert {split: open_split(tiny_coco, split).ground_truth for split in ("train", "val")} == before
    assert open_split(tiny_coco, splits[1]).ground_truth == before["val"]


@pytest.mark.parametrize(("name", "moves"), SINGLE.values(), ids=SINGLE)
def test_layouts_without_splits_have_a_single_one(tiny_coco: Path, name: str, moves: Moves) -> None:
    before = open_split(tiny_coco, "train").ground_truth
    for part in ("val", "annotations/instances_val.json"):
        shutil.rmtree(tiny_coco / part) if (tiny_coco / part).is_dir() else (tiny_coco / part).unlink()
    layout = recognize(move(tiny_coco, moves))
    assert (layout.name, list(layout.sources)) == (name, ["default"])
    assert open_split(tiny_coco, "default").ground_truth == before


def test_other_annotation_files_are_passed_over(tiny_coco: Path) -> None:
    for name in ("captions_train2017.json", "person_keypoints_val2017.json", "._instances_test.json"):
        (tiny_coco / "annotations" / name).touch()
    assert list(recognize(tiny_coco).sources) == ["train", "val"]


def test_a_root_one_folder_too_high_is_read(tiny_coco: Path) -> None:
    (tiny_coco.parent / "__MACOSX").mkdir()
    assert recognize(tiny_coco.parent).root == tiny_coco


def test_several_data_sets_in_a_folder_are_named(tiny_coco: Path) -> None:
    shutil.copytree(tiny_coco, tiny_coco.parent / "other")
    with pytest.raises(DfmsdError, match=r"several data sets; give one of them: .*other, .*tiny_coco"):
        recognize(tiny_coco.parent)


def test_an_unknown_layout_is_refused_with_what_is_there(tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / name).touch()
    with pytest.raises(DfmsdError, match=r"holds a, b, c, d, e, f, g, h, \.\.\., which is no known layout; .*COCO"):
        recognize(tmp_path)


def test_two_years_of_a_split_have_to_be_chosen_from(tiny_coco: Path) -> None:
    annotations = tiny_coco / "annotations"
    shutil.copy(annotations / "instances_train.json", annotations / "instances_train2014.json")
    (annotations / "instances_train.json").rename(annotations / "instances_train2017.json")
    with pytest.raises(DfmsdError, match=r"has train2014, train2017; choose one with data\.train"):
        open_split(tiny_coco, "train")


def test_two_files_for_one_split_are_refused_with_both(tiny_coco: Path) -> None:
    folder = tiny_coco / "annotations"
    shutil.copy(folder / "instances_train.json", folder / "train.json")
    with pytest.raises(DfmsdError, match=r"has instances_train.json and train.json for the split train; keep one"):
        recognize(tiny_coco)


def test_a_split_folder_of_roboflow_is_a_data_set(tiny_coco: Path) -> None:
    move(tiny_coco, {"annotations/instances_train.json": "train/_annotations.coco.json"})
    assert list(recognize(tiny_coco / "train").sources) == ["default"]
    assert open_split(tiny_coco / "train", "default")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cells.zip", "cells.zip is an archive: unpack it"),
        ("train/_annotations.csv", "_annotations.csv is a CSV file, which is not read: export"),
        ("annotations.xml", "annotations.xml is CVAT's own format, which is not read: export"),
        ("classes.txt", "a data set in the YOLO layout has a data.yaml"),
    ],
)
def test_what_is_not_read_is_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(DfmsdError, match=message):
        recognize(tmp_path)


def test_an_archive_as_the_root_is_told(tmp_path: Path) -> None:
    (tmp_path / "cells.zip").touch()
    with pytest.raises(DfmsdError, match=r"cells\.zip is a file, .*; cells\.zip is an archive: unpack it"):
        recognize(tmp_path / "cells.zip")
