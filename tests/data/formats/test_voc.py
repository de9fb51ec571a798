from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.layouts import SPLITS, Boxes, Picture, close, read, roboflow_voc, voc

from dfmsd.data import open_split
from dfmsd.data.formats import recognize
from dfmsd.errors import DfmsdError

YEAR = "VOCdevkit/VOC2012"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return voc(tmp_path / "data")


def refusal(root: Path, split: str = "train") -> str:
    with pytest.raises(DfmsdError) as caught:
        open_split(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(root: Path, old: str, new: str, name: str = "a") -> None:
    file = root / YEAR / "Annotations" / f"{name}.xml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("year", [".", "VOC2007", "VOCdevkit/VOC2007"])
def test_a_year_may_be_the_root_or_in_it(tmp_path: Path, year: str) -> None:
    assert close(read(voc(tmp_path / "data", year=year), "train"), SPLITS["train"])


def test_several_years_are_one_data_set(root: Path) -> None:
    other = {"train": {"z": Picture(20, 20, [("ray", (1, 1, 9, 9))])}}
    voc(root, other, year="VOCdevkit/VOC2007")
    assert close(read(root, "train"), SPLITS["train"] | other["train"])
    assert close(read(root, "val"), SPLITS["val"])


def test_lists_name_the_splits_and_lists_of_classes_do_not(root: Path) -> None:
    lists = root / YEAR / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("a\ne\n")
    (lists / "test.txt").write_text("e.png\n")
    (lists / "ray_train.txt").write_text("a 1\n")
    assert list(recognize(root).sources) == ["train", "val", "trainval", "test"]
    assert list(read(root, "trainval")) == ["a", "e"]
    assert list(read(root, "test")) == ["e"]


def test_lists_may_have_other_names_of_the_splits(root: Path) -> None:
    lists = root / YEAR / "ImageSets" / "Main"
    (lists / "val.txt").rename(lists / "valid.txt")
    assert list(recognize(root).sources) == ["train", "valid"]
    assert close(read(root, "val"), SPLITS["val"])


@pytest.mark.parametrize("folder", ["ImageSets", "."])
def test_lists_may_be_in_another_folder(root: Path, folder: str) -> None:
    for split in SPLITS:
        (root / YEAR / "ImageSets" / "Main" / f"{split}.txt").rename(root / YEAR / folder / f"{split}.txt")
    assert close(read(root, "train"), SPLITS["train"])


def test_a_line_of_a_list_may_end_with_a_flag_or_be_a_path(root: Path) -> None:
    file = root / YEAR / "ImageSets" / "Main" / "train.txt"
    file.write_text("a  1\nb (1) -1\nJPEGImages/c.d.png\n")
    assert close(read(root, "train"), SPLITS["train"])


def test_folders_may_have_other_names(root: Path) -> None:
    (root / YEAR / "JPEGImages").rename(root / YEAR / "images")
    (root / YEAR / "Annotations").rename(root / YEAR / "annotations")
    assert close(read(root, "train"), SPLITS["train"])


def test_images_and_xml_files_may_be_in_one_folder(tmp_path: Path) -> None:
    root = roboflow_voc(tmp_path / "data") / "train"
    assert close(read(root, "default"), SPLITS["train"])


def test_xml_files_without_images_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "pom.xml").write_text("<project/>")
    with pytest.raises(DfmsdError, match="which is no known layout"):
        recognize(tmp_path)


def test_without_lists_all_images_are_one_split(root: Path) -> None:
    shutil.rmtree(root / YEAR / "ImageSets")
    assert close(read(root, "default"), SPLITS["train"] | SPLITS["val"])


def test_an_image_without_an_xml_file_has_no_objects(root: Path) -> None:
    (root / YEAR / "Annotations" / "a.xml").unlink()
    assert read(root, "train")["a"].boxes == []


@pytest.mark.parametrize("writer", [voc, roboflow_voc])
def test_the_suffix_of_an_xml_file_may_have_capitals(
    tmp_path: Path, writer: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = writer(tmp_path / "other")
    for file in list(root.rglob("*.xml")):
        file.rename(file.with_suffix(".XML"))
    assert close(read(root, "train"), SPLITS["train"])
    assert not caplog.records


def test_images_without_an_xml_file_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / YEAR / "Annotations" / "a.xml").unlink()
    open_split(root, "train")
    assert "1 of 3 images have no XML file and count as images without objects, the first is a.png" in caplog.text


def test_all_xml_files_missing_are_refused(root: Path) -> None:
    for file in (root / YEAR / "Annotations").iterdir():
        file.unlink()
    assert "none of its 3 images has an XML file, such as" in refusal(root)


@pytest.mark.parametrize("size", ["0", "", "unknown"])
def test_a_size_of_zero_is_passed_over(root: Path, size: str) -> None:
    edit(root, "<width>64</width><height>48</height>", f"<width>{size}</width><height>{size}</height>")
    assert close(read(root, "train"), SPLITS["train"])


def test_a_size_that_contradicts_the_image_is_refused_with_both(root: Path) -> None:
    edit(root, "<width>64</width><height>48</height>", "<width>48</width><height>64</height>")
    error = refusal(root)
    assert "a.xml: its size is 48 x 64, but" in error
    assert "a.png has 64 x 48 pixels" in error
    assert "or remove the EXIF orientation from the file if the boxes were drawn without it" in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotation>", "<annotation", "a.xml: not valid XML"),
        ("<name> ray </name>", "<name> </name>", "a.xml: object 1 has no name"),
        ("<name> ray </name>", "<name>a&#10;b</name>", "has control characters"),
        ("<xmin>9</xmin>", "", "a.xml: object 1: xmin is '', no finite number"),
        ("<xmin>9</xmin>", "<xmin>nine</xmin>", "a.xml: object 1: xmin is 'nine', no finite number"),
        ("<xmin>9</xmin>", "<xmin>inf</xmin>", "a.xml: object 1: xmin is 'inf', no finite number"),
    ],
)
def test_a_bad_xml_file_is_named(root: Path, old: str, new: str, message: str) -> None:
    edit(root, old, new)
    assert message in refusal(root)


def test_a_missing_image_of_a_list_is_named(root: Path) -> None:
    (root / YEAR / "JPEGImages" / "b (1).png").unlink()
    assert "train.txt: 1 of 3 images are not in" in refusal(root)
    assert "the first is b (1); add them" in refusal(root)


def test_a_missing_image_of_a_folder_is_named(tmp_path: Path) -> None:
    root = roboflow_voc(tmp_path / "data")
    (root / "train" / "a.png").unlink()
    assert "1 of 3 XML files have no image" in refusal(root)


def test_corners_in_reverse_are_put_in_order(root: Path) -> None:
    boxes: Boxes = [("ray", (8, 16, 24, 48)), ("ray", (2, 3, 20, 30)), ("ray", (2, 3, 20, 31)), ("ray", (1, 1, 9, 9))]
    root = voc(root.parent / "other", {"train": {"a": Picture(64, 48, boxes)}})
    edit(root, "<xmin>9</xmin><ymin>17</ymin><xmax>24</xmax>", "<xmin>24</xmin><ymin>17</ymin><xmax>9</xmax>")
    assert close(read(root, "train"), {"a": Picture(64, 48, boxes)})


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((20, 16, 5, 4), "of 3 boxes have xmax below xmin"),
        ((0.1, 0.2, 0.5, 0.75), "3 of 3 boxes lie within 0..1"),
    ],
)
def test_boxes_in_another_convention_are_refused(
    tmp_path: Path, corners: tuple[float, float, float, float], message: str
) -> None:
    x1, y1, x2, y2 = corners
    boxes = [("ray", (x1 - 1, y1 - 1, x2, y2))] * 3
    root = voc(tmp_path / "data", {"train": {"a": Picture(64, 48, boxes)}})
    assert message in refusal(root)


def test_one_bad_box_does_not_hide_fractions(tmp_path: Path) -> None:
    boxes = [("ray", (-0.9, -0.8, 0.5, 0.75))] * 3 + [("ray", (9, 9, 8, 19))]
    root = voc(tmp_path / "data", {"train": {"a": Picture(64, 48, boxes)}})
    assert "3 of 4 boxes lie within 0..1" in refusal(root)
