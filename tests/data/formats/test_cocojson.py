from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfmsd.data.formats.cocojson import read_json

NUMBERS = st.floats(0, 9)
VALUES = st.one_of(st.none(), st.integers(-5, 2**53), NUMBERS, st.text("aü", max_size=2), st.lists(NUMBERS))
KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation", "other")


def write(file: Path, content: object) -> Path:
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=4))
def test_values_are_those_of_pythons_parser(folder: Path, entries: list[dict[str, object]]) -> None:
    read = read_json(write(folder / "a.json", {"annotations": entries, "info": {"images": 7}}))
    assert read["images"] is None
    for annotation, entry in zip(read["annotations"], entries, strict=True):
        for key in KEYS[:-2]:
            assert getattr(annotation, key) == entry.get(key)
        assert annotation.read_segmentation() == entry.get("segmentation")


@pytest.mark.parametrize("slow", [float("nan"), 2**70])
def test_numbers_that_only_python_reads_are_read(tmp_path: Path, slow: float) -> None:
    entry = {"id": 1, "area": slow, "segmentation": [[1, 2]]}
    (annotation,) = read_json(write(tmp_path / "a.json", {"annotations": [entry]}))["annotations"]
    assert repr(annotation.area) == repr(slow)
    assert annotation.read_segmentation() == [[1, 2]]


def test_a_segmentation_is_not_parsed_unless_it_is_asked_for(tmp_path: Path) -> None:
    entry = {"id": 1, "segmentation": [[1, 2]]}
    (annotation,) = read_json(write(tmp_path / "a.json", {"annotations": [entry]}))["annotations"]
    assert isinstance(annotation.segmentation, msgspec.Raw)


def test_what_is_no_object_or_list_stays(tmp_path: Path) -> None:
    read = read_json(write(tmp_path / "a.json", {"images": [1, {"id": 2}], "categories": "x"}))
    assert read["images"][0] == 1
    assert read["images"][1].id == 2
    assert read["categories"] == "x"
