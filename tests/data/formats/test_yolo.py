from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tests.helpers.layouts import SPLITS, close, label_studio_yolo, read, roboflow_yolo, yolo

from dfmsd.data import open_split
from dfmsd.data.formats import recognize
from dfmsd.errors import DfmsdError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Data with `cells.yaml`, `images` and `labels`."""
    return yolo(tmp_path / "data")


def settings(root: Path, **values: Any) -> None:
    file = root / "cells.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}, allow_unicode=True))


def rows(root: Path, *lines: str, name: str = "a") -> None:
    (root / "labels" / "train" / f"{name}.txt").write_text("\n".join(lines))


def refusal(root: Path, split: str = "train") -> str:
    with pytest.raises(DfmsdError) as caught:
        open_split(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Classes.


@pytest.mark.parametrize("names", [{"0": "eel", "1": "ray"}, {1: "ray", 0: "eel"}, ["eel", "ray"]])
def test_names_may_be_a_list_or_a_mapping_from_numbers(root: Path, names: Any) -> None:
    settings(root, names=names)
    assert close(read(root, "train"), SPLITS["train"])


def test_the_keys_of_names_are_class_numbers(root: Path) -> None:
    settings(root, names={3: "eel", 7: "ray"})
    for file in root.glob("labels/*/*.txt"):
        lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("\n".join(f"{['3', '7'][int(number)]} {rest}" for number, rest in lines))
    split = open_split(root, "train")
    assert (split.class_names, split.category_ids) == (("eel", "ray"), (3, 7))
    assert close(read(root, "train"), SPLITS["train"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[yes, no]", ("yes", "no")),
        ("[1, 1e3]", ("1", "1e3")),
        ("[' RBC ', 2020-01-01]", ("RBC", "2020-01-01")),
        ("{0: on, 1: 'null'}", ("on", "null")),
    ],
)
def test_names_are_text_as_it_is_written(root: Path, text: str, names: tuple[str, ...]) -> None:
    settings(root, names=[])
    file = root / "cells.yaml"
    file.write_text(file.read_text().replace("names: []", f"names: {text}"))
    assert open_split(root, "train").class_names == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["eel", None], "names: class 1 is None, no text"),
        (["eel", "eel "], "class name 'eel' occurs more than once"),
        (["eel", ""], "name '' of class 1 is empty"),
        (["eel", "a\nb"], r"name 'a\nb' of class 1 has control characters"),
        ({"a": "eel"}, "names: 'a' is not the number of one class"),
        ({"00": "eel", "0": "ray"}, "is not the number of one class"),
        ([], "no `names` of classes"),
        ("eel", "no `names` of classes, but 'eel'; give a list"),
        ([{"id": 0}, "ray"], "names: class 0 is {'id': '0'}, no text; give its name alone"),
        (["eel"], "a.txt: line 1 has class 1, which has no name in cells.yaml (it has 0 to 0)"),
    ],
)
def test_bad_names_are_refused(root: Path, names: Any, message: str) -> None:
    settings(root, names=names)
    assert message in refusal(root)


@pytest.mark.parametrize("count", [1, 3, "two"])
def test_another_number_of_classes_than_of_names_is_refused(root: Path, count: Any) -> None:
    settings(root, nc=count)
    assert f"nc is {count}, but there are 2 names; correct one of them" in refusal(root)


def test_the_number_of_classes_may_count_gaps(root: Path) -> None:
    settings(root, nc=8, names={0: "eel", 1: "ray", 7: "cod"})
    assert close(read(root, "train"), SPLITS["train"])


@pytest.mark.parametrize("text", ["names: [a, b]\n", "more: {0: a, 0: b}\n"])
def test_a_key_that_occurs_twice_is_refused(root: Path, text: str) -> None:
    with (root / "cells.yaml").open("a") as file:
        file.write(text)
    assert f"the key {text[:5] if text[0] == 'n' else 0} occurs twice), line" in refusal(root)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An export of Label Studio."""
    root = label_studio_yolo(tmp_path / "data", {"train": SPLITS["train"]})
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / "train")
        (root / kind).rmdir()
        (root / "train").rename(root / kind)
    return root


def test_the_images_of_one_folder_are_one_split(exported: Path) -> None:
    assert list(recognize(exported).sources) == ["train"]
    assert close(read(exported, "train"), SPLITS["train"])


def test_a_list_of_classes_is_read_by_line(exported: Path) -> None:
    (exported / "classes.txt").write_text("eel\n\nray\n\n")
    assert "classes.txt: the name '' of class 1 is empty; rename it" in refusal(exported)
    (exported / "classes.txt").write_text("eel\n")
    assert "a.txt: line 1 has class 1, which has no name in classes.txt (it has 0 to 0)" in refusal(exported)


def test_a_yaml_file_is_preferred_to_a_list_of_classes(exported: Path) -> None:
    (exported / "data.yaml").write_text("train: images\nnames: [cod, hake]\n")
    assert open_split(exported, "train").class_names == ("cod", "hake")


# Places.


def test_images_may_be_in_several_folders_and_in_subfolders(root: Path) -> None:
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        for name, folder in (("a", "more/1"), ("c.d", "rest")):
            (root / kind / folder).mkdir(parents=True)
            shutil.move(root / kind / "train" / f"{name}.{suffix}", root / kind / folder)
    settings(root, train=["images/train", "images/more", "images/rest"])
    assert close(read(root, "train"), SPLITS["train"])


@pytest.mark.parametrize("path", [".", "../data", "absolute", "/nowhere/data", None])
def test_path_may_be_relative_absolute_or_gone(root: Path, path: str | None) -> None:
    settings(root, path=str(root) if path == "absolute" else path)
    assert close(read(root, "train"), SPLITS["train"])


@pytest.mark.parametrize(
    "place", ["/nowhere/data/images/train", "./images/train/", r"images\train", r"C:\x\images\train"]
)
def test_places_of_another_machine_are_found(root: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    settings(root, train=place)
    assert close(read(root, "train"), SPLITS["train"])
    moved = place.startswith(("/", "C:"))
    assert (f"train: {place} is not there: {root / 'images' / 'train'} is taken" in caplog.text) == moved


@pytest.mark.parametrize("place", ["valid/images", "/nowhere/valid/images", "val"])
def test_the_images_of_another_split_are_not_taken(tmp_path: Path, place: str) -> None:
    root = yolo(tmp_path / "data", {"train": SPLITS["train"]})
    settings(root, train="images/train", val=place)
    assert f"cells.yaml: val: no folder or list {place} in" in refusal(root, "val")


def test_both_splits_may_be_the_same_folder_of_another_machine(root: Path) -> None:
    settings(root, train="/nowhere/images/train", val="/nowhere/images/train")
    assert close(read(root, "val"), SPLITS["train"])


@pytest.mark.parametrize("path", [None, "."])
def test_a_data_set_beside_this_one_is_not_taken_for_it(tmp_path: Path, path: str | None) -> None:
    other = {"train": {"z": SPLITS["train"]["a"]}}
    roboflow_yolo(tmp_path, other)
    root = roboflow_yolo(tmp_path / "data")
    if path:
        (root / "data.yaml").write_text(f"path: {path}\n{(root / 'data.yaml').read_text()}")
    assert close(read(root, "train"), SPLITS["train"])


def test_a_folder_beside_that_of_the_yaml_file_is_found(tmp_path: Path) -> None:
    root = roboflow_yolo(tmp_path / "data")
    (root / "meta").mkdir()
    (root / "data.yaml").rename(root / "meta" / "data.yaml")
    assert close(read(root / "meta", "train"), SPLITS["train"])


def test_the_yaml_file_itself_may_be_the_root(root: Path) -> None:
    assert recognize(root / "cells.yaml").name == "YOLO"


def test_a_list_with_a_missing_image_is_refused_with_the_line(root: Path) -> None:
    (root / "list.txt").write_text("images/train/a.png\n\nimages/train/b.png\n")
    settings(root, train="list.txt")
    assert "list.txt: line 3: no image images/train/b.png" in refusal(root)


def test_a_missing_folder_is_named(root: Path) -> None:
    settings(root, train="nowhere")
    error = refusal(root)
    assert "cells.yaml: train: no folder or list nowhere" in error
    assert error.endswith("correct the path, or remove the key train if there is no such split")


def test_several_yaml_files_have_to_be_chosen_from(root: Path) -> None:
    shutil.copy(root / "cells.yaml", root / "other.yaml")
    assert "several YAML files with names, cells.yaml, other.yaml; give one of them" in refusal(root)


def test_a_link_out_of_the_data_is_refused(root: Path) -> None:
    (root / "images" / "train" / "a.png").rename(root.parent / "private.png")
    (root / "images" / "train" / "a.png").symlink_to(root.parent / "private.png")
    assert "1 of its 3 images lead out of" in refusal(root)


# YAML and text.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: a\nval: b\nnames:\n\t- eel\n", "data.yaml: not valid YAML (tab), line 4"),
        ("names: [eel\n", "data.yaml: not valid YAML ("),
        ("- eel\n", "data.yaml: expected keys such as names, train and val"),
        ("names: [eel]\n", "data.yaml: it has neither train nor val"),
        ("names: [eel]\ntrain: {a: b}\n", "data.yaml: train: expected a folder of images"),
    ],
)
def test_a_bad_yaml_file_is_refused_with_the_place(root: Path, text: str, message: str) -> None:
    (root / "data.yaml").write_text(text)
    assert message in refusal(root)


def test_utf_16_is_told(root: Path) -> None:
    (root / "labels" / "train" / "a.txt").write_text("0 .5 .5 .2 .2", encoding="utf-16")
    assert "a.txt: it is UTF-16 text; save it as UTF-8" in refusal(root)


# Rows.


def test_all_label_files_missing_are_refused(root: Path) -> None:
    shutil.rmtree(root / "labels" / "train")
    assert "none of its 3 images has a label file, such as" in refusal(root)
    assert "labels/train/a.txt; add them" in refusal(root)


def test_images_without_a_label_file_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_split(root, "train")
    assert (
        "cells.yaml: train: 1 of 3 images have no label file and count as images without objects, the first is "
        "b (1).png"
    ) in caplog.text
    caplog.clear()
    open_split(root, "val")
    assert not caplog.records


def test_the_suffix_of_a_label_file_may_have_capitals(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "labels" / "train" / "a.txt").rename(root / "labels" / "train" / "a.TXT")
    assert close(read(root, "train"), SPLITS["train"])
    (root / "images" / "train" / "a.png").unlink()
    open_split(root, "train")
    assert f"1 of 2 label files have no image, the first is {root / 'labels' / 'train' / 'a.TXT'}" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0 32 24 16 16", "1 10 10 9 9"], "a.txt: line 1 has a box outside 0..1, as have 2 of 3 rows"),
        (["0 .5 .5 .2 x"], "a.txt: line 1 is not a row of numbers"),
        (["", "0 .5 .5 .2"], "a.txt: line 2 has 4 numbers"),
        (["0 .5 .5 .2 .2 .9"], "a.txt: line 1 has 6 numbers"),
        (["0 .5 .5 .2 nan"], "a.txt: line 1 has a number that is not finite"),
        (["0.5 .5 .5 .2 .2"], "has class 0.5, which has no name"),
        (["0 .5 .5 .2 .2", "0 1.2 .5 .2 .2"], "a.txt: line 2 has a box outside 0..1, as have 1 of 3 rows of"),
        (["0 .5 .5 .2 .2 .5 .5 2 .4 .4 1"], "a.txt: line 1 looks like a box with key points, as do 1 of 2 rows"),
        (["0 .5 .5 .2 .2 .5 .5 .45 .55"], "looks like a box with key points"),
        (["0 .1 .1 .5 .5", "1 .5 .5 .9 .9", "1 .6 .6 .9 .9"], "boxes reach beyond their image, and 4 of 4 fit if read"),
    ],
)
def test_rows_in_another_convention_are_refused(root: Path, lines: list[str], message: str) -> None:
    rows(root, *lines)
    rows(root, "0 .1 .1 .2 .2" if "beyond" not in message else "0 .1 .1 .9 .95", name="c.d")
    assert message in refusal(root)


def test_one_bad_row_does_not_hide_corners(root: Path) -> None:
    rows(root, *["0 .1 .1 .5 .5", "1 .5 .5 .9 .9", "1 .6 .6 .9 .9"] * 8, "0 .5 .5 .5 .6")
    rows(root, name="c.d")
    assert "16 of 25 boxes reach beyond their image, and 24 of 25 fit if read as x1, y1, x2, y2" in refusal(root)


def test_polygons_give_their_boxes_and_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows(root, "0 .25 .5 .5 .25 .75 .5", "1 .5 .5 .5 .5", "1 0 0 1 0 1 1 0 1")
    assert [box for _, box in read(root, "train")["a"].boxes] == [(16, 12, 48, 24), (16, 12, 48, 36), (0, 0, 64, 48)]
    assert "2 of 4 rows have a polygon: its box is computed" in caplog.text


@pytest.mark.parametrize("polygon", ["0 .1 .1 .5 .1 .5 1.02 .1 .5", "0 -.02 .1 .5 .1 .5 .5 .1 .5"])
def test_a_polygon_with_a_point_outside_its_image_is_named(root: Path, polygon: str) -> None:
    rows(root, "0 .1 .1 .5 .1 .5 .5 .3 .6 .1 .5", polygon)
    error = refusal(root)
    assert "a.txt: line 2 has a point outside 0..1, as have 1 of 3 rows of" in error
    assert "pixels" not in error


def test_a_polygon_in_pixels_is_told(root: Path) -> None:
    rows(root, "0 1 1 5 1 5 5 3 6 1 5", "0 1 1 5 1 5 10 1 5")
    assert "a.txt: line 1 has a point outside 0..1, as have 2 of 3 rows" in refusal(root)
    assert "so they are probably pixels" in refusal(root)


def test_one_key_point_outside_its_box_does_not_hide_the_others(root: Path) -> None:
    rows(root, *["0 .5 .5 .2 .2 .5 .5 .45 .55"] * 24, "0 .5 .5 .2 .2 .5 .5 .45 .65")
    assert "looks like a box with key points, as do 25 of 26 rows" in refusal(root)


@pytest.mark.parametrize(
    ("row", "numbers"), [("0 .1 .1 .5 .1 .5 .5 .3 .6 .1 .5", 11), ("0 .5 .5 .5 .5 .5 .5 2", 8)], ids=["11", "8"]
)
def test_a_row_without_all_key_points_is_named(root: Path, row: str, numbers: int) -> None:
    settings(root, kpt_shape=[3, 3])
    rows(root, "0 .5 .5 .5 .5 .5 .5 2 .4 .4 1 0 0 0", row)
    assert (
        f"a.txt: line 2 has {numbers} numbers, but a box and the kpt_shape [3, 3] of cells.yaml make 14; correct one "
        "of them"
    ) in refusal(root)


@pytest.mark.parametrize("shape", ["17", [17], [17, 4], ["a", 3], [0, 3]])
def test_a_malformed_shape_of_key_points_is_refused(root: Path, shape: Any) -> None:
    settings(root, kpt_shape=shape)
    assert "cells.yaml: kpt_shape: expected a number of key points and 2 or 3, as in [17, 3], got" in refusal(root)


def test_key_points_that_are_announced_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings(root, kpt_shape=[2, 3])
    rows(root, "0 .5 .5 .5 .5 .5 .5 2 .4 .4 1")
    assert [box for _, box in read(root, "train")["a"].boxes] == [(16, 12, 48, 36)]
    assert "1 of 2 rows have key points, which are left out" in caplog.text


def test_a_broken_image_is_named(root: Path) -> None:
    (root / "images" / "train" / "a.png").write_bytes(b"text")
    assert "images/train/a.png: cannot be decoded as an image" in refusal(root)


def test_boxes_belong_to_the_image_as_it_is_turned(tmp_path: Path) -> None:
    root = roboflow_yolo(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "val" / "images" / "e.png").unlink()
    Image.new("RGB", (48, 64)).save(root / "val" / "images" / "e.jpg", exif=exif)
    assert close(read(root, "val"), SPLITS["val"])


def test_label_files_without_an_image_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "labels" / "train" / "classes.txt").write_text("eel\nray\n")
    open_split(root, "train")
    assert "have no image" not in caplog.text
    (root / "images" / "train" / "a.png").rename(root / "images" / "train" / "a.heic")
    open_split(root, "train")
    orphan = root / "labels" / "train" / "a.txt"
    assert f"cells.yaml: train: 1 of 2 label files have no image, the first is {orphan}" in caplog.text


def test_a_box_of_negative_size_is_refused(root: Path) -> None:
    rows(root, "0 .5 .5 .2 -.2")
    assert "a.txt: line 1 has a box of negative width or height; correct it" in refusal(root)
