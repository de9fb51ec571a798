from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.helpers.annotations import change, edit

from dfmsd.data import DetectionSplit, index, open_split
from dfmsd.data.formats import coco
from dfmsd.errors import DfmsdError
from dfmsd.utils.cachedir import cache_root


@pytest.fixture(autouse=True)
def every_file_is_large(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(coco, "LARGE", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read, files = coco.read_annotations, []

    def noted(file: Path, *rest: Any) -> Any:
        files.append(file)
        return read(file, *rest)

    monkeypatch.setattr(coco, "read_annotations", noted)
    return files


def content(split: DetectionSplit) -> list[object]:
    records = [(*record[:4], record.boxes.tolist(), record.labels.tolist(), record.labeled) for record in split.records]
    return [split.class_names, split.category_ids, split.classes_listed, records, split.ground_truth]


def index_file() -> Path:
    (file,) = (cache_root() / "index").glob("*/*.safetensors")
    return file


def test_a_split_is_read_once_and_is_the_same_from_its_index(tiny_coco: Path, reads: list[Path]) -> None:
    edit(tiny_coco, change("annotations", iscrowd=1))
    first = open_split(tiny_coco, "train")
    second = open_split(tiny_coco, "train")
    assert len(reads) == 1
    assert content(first) == content(second)
    for index_, (image, target) in enumerate(first):  # type: ignore[arg-type]
        assert torch.equal(image, second[index_][0])
        assert torch.equal(target["boxes"], second[index_][1]["boxes"])


def test_warnings_are_repeated(tiny_coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(tiny_coco, change("annotations", bbox=[-9, 0, 3, 3]))
    open_split(tiny_coco, "train")
    first = caplog.messages[:]
    caplog.clear()
    open_split(tiny_coco, "train")
    assert caplog.messages == first
    assert " of 13 boxes have no area inside their image" in first[0]


def test_changed_annotations_are_read_again(tiny_coco: Path, reads: list[Path]) -> None:
    open_split(tiny_coco, "train")
    edit(tiny_coco, change("annotations", bbox=[1, 2, 3, 4]))
    assert open_split(tiny_coco, "train").truth.boxes[0].tolist() == [1, 2, 3, 4]
    assert len(reads) == 2


def test_a_changed_image_is_checked_again(tiny_coco: Path) -> None:
    path = open_split(tiny_coco, "train").records[3].path
    Image.new("RGB", (7, 5)).save(path)
    with pytest.raises(DfmsdError, match="is 7 x 5 pixels"):
        open_split(tiny_coco, "train")


def test_a_missing_image_is_named_as_without_an_index(tiny_coco: Path) -> None:
    path = open_split(tiny_coco, "train").records[3].path
    path.unlink()
    with pytest.raises(DfmsdError, match=rf"1 of the 8 images in .* are missing: {path.name}"):
        open_split(tiny_coco, "train")


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_index_is_written_again(tiny_coco: Path, reads: list[Path], damage: bytes | None) -> None:
    before = content(open_split(tiny_coco, "train"))
    whole = index_file().read_bytes()
    index_file().write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert content(open_split(tiny_coco, "train")) == before
    assert len(reads) == 2
    assert content(open_split(tiny_coco, "train")) == before
    assert len(reads) == 2


def test_an_index_of_another_version_is_not_used(
    tiny_coco: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_split(tiny_coco, "train")
    monkeypatch.setattr(index, "VERSION", index.VERSION + 1)
    open_split(tiny_coco, "train")
    assert len(reads) == 2


def test_a_folder_that_cannot_be_written_to_is_no_error(tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFMSD_CACHE", os.devnull)
    assert len(open_split(tiny_coco, "train")) == 8


def test_small_files_have_no_index(tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "LARGE", 2**24)
    open_split(tiny_coco, "train")
    assert not list((cache_root() / "index").glob("*/*"))
