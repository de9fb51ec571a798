from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.annotations import Edit, change, edit

from dfmsd.data.annotations import read_annotations
from dfmsd.errors import DfmsdError


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
        (change("images", width=0), "no positive integer `width` and `height`"),
        (change("images", file_name=None), "image id 1 has no `file_name`"),
        (change("images", file_name="../val/val_0.jpg"), "leaves"),
        (change("images", file_name="/etc/hostname"), "leaves"),
    ],
)
def test_a_damaged_annotation_file_is_refused_by_name(tiny_coco: Path, damage: Edit, message: str) -> None:
    edit(tiny_coco, damage)
    with pytest.raises(DfmsdError, match=message) as caught:
        read_annotations(tiny_coco / "annotations" / "instances_train.json", tiny_coco / "train")
    assert "instances_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "expected a JSON object .* got a list")])
def test_a_file_without_a_json_object_is_refused(tiny_coco: Path, text: str, message: str) -> None:
    (tiny_coco / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(DfmsdError, match=message):
        read_annotations(tiny_coco / "annotations" / "instances_train.json", tiny_coco / "train")


def test_categories_are_sorted_by_id_and_other_keys_are_ignored(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda raw: (raw["categories"].reverse(), raw.update(licenses=[], info=7)))
    content = read_annotations(tiny_coco / "annotations" / "instances_train.json", tiny_coco / "train")
    assert [category["id"] for category in content.categories] == [1, 3]
    assert len(content.images) == 8
