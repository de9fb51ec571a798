from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask
from tests.helpers.annotations import Edit, change, edit

from dfmsd.data.formats.annotations import read_annotations
from dfmsd.data.formats.boxes import check_convention
from dfmsd.data.formats.layout import Content
from dfmsd.errors import DfmsdError


def read(root: Path) -> Content:
    return read_annotations(root / "annotations" / "instances_train.json", (root / "train",), root)


def delete(key: str) -> Edit:
    return lambda raw: raw.pop(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete("categories"), "no list `categories`"),
        (delete("annotations"), "no list `annotations`"),
        (lambda raw: raw.update(categories=[], annotations=[]), "`categories` is empty"),
        (lambda raw: raw.update(images=[], annotations=[]), "`images` is empty"),
        (lambda raw: raw["images"].append(7), r"images\[8\] has no integer `id`"),
        (change("annotations", id=None), r"annotations\[0\] has no integer `id`"),
        (change("images", id=2), "images id 2 occurs more than once"),
        (change("annotations", id=2), "annotations id 2 occurs more than once"),
        (change("categories", id=3), "categories id 3 occurs more than once"),
        (change("categories", name="disc"), "category name 'disc' occurs more than once"),
        (change("categories", name=""), "category id 1 has no `name`"),
        (change("annotations", image_id=99), "annotation id 1 has the unknown image_id 99"),
        (change("annotations", category_id=2), "annotation id 1 has the unknown category_id 2"),
        (change("annotations", bbox=[1, 2, 3]), "is not 4 finite numbers"),
        (change("annotations", bbox=[1, 2, 3, float("nan")]), "is not 4 finite numbers"),
        (change("annotations", bbox=[1, 2, 3, "4"]), "is not 4 finite numbers"),
        (change("annotations", bbox=None), "is not 4 finite numbers"),
        (change("images", file_name=None), "image id 1 has no `file_name`"),
        (change("images", file_name="../val/val_9.jpg"), "1 of the 8 images .* are missing"),
        (change("images", file_name="/etc/hostname"), "1 of the 8 images .* lead out"),
    ],
)
def test_a_damaged_annotation_file_is_refused_by_name(tiny_coco: Path, damage: Edit, message: str) -> None:
    edit(tiny_coco, damage)
    with pytest.raises(DfmsdError, match=message) as caught:
        read(tiny_coco)
    assert "instances_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object .* got a list"),
        (" ", "the file is empty"),
        ("version https://git-lfs.github.com/spec/v1", "pointer of Git LFS, .* run `git lfs pull`"),
    ],
)
def test_a_file_without_a_json_object_is_refused(tiny_coco: Path, text: str, message: str) -> None:
    (tiny_coco / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(DfmsdError, match=message):
        read(tiny_coco)


def test_an_unused_category_of_the_name_of_another_is_left_out(
    tiny_coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = read(tiny_coco)
    edit(tiny_coco, lambda raw: raw["categories"].insert(0, {"id": 0, "name": "disc"}))
    content = read(tiny_coco)
    assert content.categories == before.categories
    assert content.truth.labels.tolist() == before.truth.labels.tolist()
    assert (
        "instances_train.json: category id 0 is left out: no annotation has it, and id 3 is 'disc', too" in caplog.text
    )


def test_the_first_of_unused_categories_of_one_name_is_kept(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda raw: raw["categories"].extend({"id": number, "name": "cells"} for number in (8, 7, 9)))
    assert [category["id"] for category in read(tiny_coco).categories] == [1, 3, 7]


def test_categories_are_sorted_by_id_and_other_keys_are_ignored(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda raw: (raw["categories"].reverse(), raw.update(licenses=[], info=7)))
    content = read(tiny_coco)
    assert [category["id"] for category in content.categories] == [1, 3]
    assert len(content.images) == 8


@pytest.mark.parametrize("kind", [str, float, lambda number: f" {number}.0"])
def test_integers_written_as_text_or_floats_are_ids(tiny_coco: Path, kind: Callable[[int], object]) -> None:
    before = plain(read(tiny_coco))

    def rewrite(raw: dict[str, Any]) -> None:
        for key in ("images", "categories", "annotations"):
            for entry in raw[key]:
                entry.update({name: kind(entry[name]) for name in ("id", "image_id", "category_id") if name in entry})

    edit(tiny_coco, rewrite)
    assert plain(read(tiny_coco)) == before


def plain(content: Content) -> list[object]:
    return [content.images, content.categories, [column.tolist() for column in content.truth]]


def test_ids_that_collide_as_integers_are_refused(tiny_coco: Path) -> None:
    edit(tiny_coco, change("images", id="02"))
    with pytest.raises(DfmsdError, match="images id 2 occurs more than once"):
        read(tiny_coco)


@pytest.mark.parametrize("given", ["a7f3", 1.5, None, [1]])
def test_the_message_about_an_id_shows_it(tiny_coco: Path, given: object) -> None:
    edit(tiny_coco, change("annotations", image_id=given))
    with pytest.raises(DfmsdError) as caught:
        read(tiny_coco)
    assert f"unknown image_id {given!r}" in str(caught.value)


def test_images_are_numbered_in_the_order_of_their_ids(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda raw: shift_ids(raw, 20260101123045000))
    content = read(tiny_coco)
    assert [image["id"] for image in content.images] == list(range(1, 9))
    assert set(content.truth.images) <= set(range(1, 9))


def shift_ids(raw: dict[str, Any], offset: int) -> None:
    for image in raw["images"]:
        image["id"] += offset
    for annotation in raw["annotations"]:
        annotation["image_id"] += offset


@pytest.mark.parametrize("size", [{}, {"width": -1}, {"width": None}, {"height": "tall"}, {"width": 0, "height": 0}])
def test_sizes_that_are_none_come_from_the_image(
    tiny_coco: Path, size: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    before = read(tiny_coco).images[0]
    edit(tiny_coco, lambda raw: [raw["images"][0].pop(key) for key in ("width", "height")])
    edit(tiny_coco, change("images", **size))
    assert read(tiny_coco).images[0] == before
    assert "1 images have no usable width and height: taken from their files" in caplog.text


def test_a_size_written_as_text_is_still_compared(tiny_coco: Path) -> None:
    edit(tiny_coco, change("images", width="4000"))
    with pytest.raises(DfmsdError, match="says 4000 x"):
        read(tiny_coco)


RLE = {"size": [20, 30], "counts": [2 * 20 + 3, 5, 15, 5, 20 * 30 - 68]}
"""Two columns of five pixels."""
SEGMENTATIONS = {
    "polygons": ([[2, 3, 10, 3, 10, 8.5], [1, 4, 2, 4, 2, 5]], [1, 3, 9, 5.5]),
    "run lengths": (RLE, [2, 3, 2, 5]),
}


@pytest.mark.parametrize("box", [None, [], [0, 0, 0, 0]])
@pytest.mark.parametrize(("segmentation", "wanted"), SEGMENTATIONS.values(), ids=SEGMENTATIONS)
def test_a_missing_box_is_computed_from_the_segmentation(
    tiny_coco: Path, box: object, segmentation: object, wanted: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    edit(tiny_coco, change("annotations", bbox=box, segmentation=segmentation))
    assert read(tiny_coco).truth.boxes[0].tolist() == wanted
    assert "1 annotations have no box: computed from their segmentation" in caplog.text


def test_a_compressed_run_length_encoding_gives_the_same_box(tiny_coco: Path) -> None:
    counts = mask.frPyObjects(RLE, 20, 30)["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    edit(tiny_coco, change("annotations", bbox=None, segmentation={"size": [20, 30], "counts": text}))
    assert read(tiny_coco).truth.boxes[0].tolist() == [2, 3, 2, 5]


@pytest.mark.parametrize(
    "segmentation",
    ["text", [[1, 2, 3]], [[]], {"size": [20, 30]}, {"size": 7, "counts": [1]}, {"size": [20, 30], "counts": "é"}],
)
def test_a_malformed_segmentation_is_no_box(tiny_coco: Path, segmentation: object) -> None:
    edit(tiny_coco, change("annotations", bbox=None, segmentation=segmentation))
    with pytest.raises(DfmsdError, match="annotation id 1 has no bbox, and its segmentation is no polygon or RLE"):
        read(tiny_coco)


@pytest.mark.parametrize("flag", [1, True, "1"])
def test_ignored_annotations_are_crowds(tiny_coco: Path, flag: object, caplog: pytest.LogCaptureFixture) -> None:
    edit(tiny_coco, change("annotations", ignore=flag))
    assert read(tiny_coco).truth.crowds[0]
    assert '1 annotations have "ignore": 1 and count as crowds' in caplog.text


CONVENTIONS = {
    "x1, y1, x2, y2": lambda x, y, width, height: [x, y, x + width, y + height],
    "the centre, width and height": lambda x, y, width, height: [x + width / 2, y + height / 2, width, height],
    "y, x, height, width": lambda x, y, width, height: [y, x, height, width],
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_boxes_in_another_convention_are_refused_with_their_number(convention: str) -> None:
    boxes = [CONVENTIONS[convention](x, y, 30, 15) for x, y in [(0, 0), (70, 35), (65, 20), (10, 5), (40, 30)]]
    with pytest.raises(DfmsdError, match=rf"\d of 5 boxes reach beyond their image, .* fit if read as {convention};"):
        check_convention(np.array(boxes, float), np.array([(100, 50)] * 5), Path("a.json"))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_bad_box_does_not_hide_another_convention(convention: str) -> None:
    places = [(0, 0), (70, 35), (65, 20), (10, 5), (40, 30)] * 5
    boxes = [*(CONVENTIONS[convention](x, y, 30, 15) for x, y in places), [90, 45, 89, 49]]
    with pytest.raises(DfmsdError, match=rf"of 26 boxes reach .* and 25 of 26 fit if read as {convention};"):
        check_convention(np.array(boxes, float), np.array([(100, 50)] * 26), Path("a.json"))


def test_boxes_beyond_their_image_in_every_convention_are_accepted() -> None:
    boxes = np.array([[-20, -10, 40, 40], [90, 40, 40, 40]], float)
    check_convention(boxes, np.array([(100, 50)] * 2), Path("a.json"))


def test_boxes_given_by_two_corners_are_refused_in_a_file(tiny_coco: Path) -> None:
    def corners(raw: dict[str, Any]) -> None:
        for entry in raw["annotations"]:
            entry["bbox"] = CONVENTIONS["x1, y1, x2, y2"](*entry["bbox"])

    edit(tiny_coco, corners)
    with pytest.raises(DfmsdError, match=r"\d+ of 1\d boxes reach beyond their image, .* x1, y1, x2, y2"):
        read(tiny_coco)


def test_boxes_in_fractions_of_the_image_are_refused_with_their_number(tiny_coco: Path) -> None:
    def scale(raw: dict[str, Any]) -> None:
        for entry in raw["annotations"]:
            entry["bbox"] = [side / 100 for side in entry["bbox"]]

    edit(tiny_coco, scale)
    with pytest.raises(DfmsdError, match=r"(\d+) of \1 boxes lie within 0\.\.1"):
        read(tiny_coco)


@pytest.mark.parametrize(
    ("encoding", "told"), [("utf-16", "it is UTF-16 text"), ("latin-1", "is not UTF-8 but perhaps Latin-1")]
)
def test_another_encoding_is_told(tiny_coco: Path, encoding: str, told: str) -> None:
    file = tiny_coco / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace("disc", "Öhr"), encoding=encoding)
    with pytest.raises(DfmsdError, match=rf"instances_train\.json: .*{told}.*; save it as UTF-8"):
        read(tiny_coco)
