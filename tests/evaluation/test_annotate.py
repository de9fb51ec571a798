from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.finder import Finder, draw_images

import dfmsd
from dfmsd.data import open_split
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.annotate import annotate


class Broken(Finder):
    """Refuses every image, in the way of a detector whose outputs are wrong."""

    def predict(self, *_: Any, **__: Any) -> Any:
        raise DfmsdError("detector: expected three outputs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "photos")


def test_the_file_in_the_folder_of_the_images_is_a_data_set(folder: Path) -> None:
    speed = annotate(Finder(), [folder], folder / "_annotations.coco.json", image_size=64)
    assert speed.images == 3
    split = open_split(folder, "default")
    assert split.class_names == ("square", "disc")
    found = {record.path.name: record.boxes.tolist() for record in split.records}
    assert found == {"left.png": [[8, 8, 24, 24]], "right.png": [[32, 8, 56, 40]], "none.png": []}


def test_names_are_relative_to_the_folder_of_all_images(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "labels.json"
    dfmsd.predict(Finder(), [folder / "left.png", folder / "deep"], score=0.95, image_size=64, as_annotations=file)
    content = json.loads(file.read_text())
    assert [image["file_name"] for image in content["images"]] == ["left.png", "deep/right.png"]
    assert content["annotations"] == []


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_done(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "left.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    with pytest.raises(
        DfmsdError, match=r"^2 of 5 files cannot be read: .*text.png.*; the others are done, see .*json$"
    ):
        annotate(Finder(), [folder], tmp_path / "labels.json", image_size=64)
    assert len(json.loads((tmp_path / "labels.json").read_text())["images"]) == 3


def test_an_error_of_the_detector_is_not_one_of_the_image(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"^detector: expected three outputs$"):
        annotate(Broken(), [folder], tmp_path / "labels.json", image_size=64)


def test_a_file_that_exists_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text("mine")
    with pytest.raises(DfmsdError, match=r"labels.json exists; name a new file, or remove it"):
        annotate("runs/none", [folder], file)
    assert file.read_text() == "mine"


def test_one_place_to_write_to_is_needed(folder: Path) -> None:
    for places in ({}, {"out": "seen", "as_annotations": "labels.json"}):
        with pytest.raises(DfmsdError, match=r"^pass either `out`, a folder for drawings, or `as_annotations`, a COCO"):
            dfmsd.predict("runs/none", folder, **places)  # type: ignore[arg-type]
