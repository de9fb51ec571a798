from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from dfmsd.data import DetectionDataset, open_split
from dfmsd.data.images import read_image
from dfmsd.data.inputs import find_images, to_batch
from dfmsd.errors import DfmsdError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "out").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/out/drawn.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    for name in ("clip.mp4", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("name", ["._b.png", ".ipynb_checkpoints/b.png", "deep/@eaDir/b.png", "__MACOSX/deep/b.png"])
def test_hidden_files_and_folders_are_skipped(folder: Path, name: str) -> None:
    before = find_images([folder])
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (8, 6)).save(folder / name)
    assert find_images([folder]) == before


def test_names_that_are_not_utf_8_are_refused(folder: Path) -> None:
    os.rename(os.fsencode(folder / "b.png"), os.fsencode(folder / "deep") + b"/caf\xe9.png")
    with pytest.raises(DfmsdError) as caught:
        find_images([folder])
    assert str(caught.value) == (
        f"{folder}: the names of 1 of its 4 images are not UTF-8, the first is b'deep/caf\\xe9.png'; rename them"
    )


def test_a_hidden_folder_that_is_given_is_searched(folder: Path) -> None:
    hidden = folder.rename(folder.parent / ".hidden")
    assert len(find_images([hidden])) == 4


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(DfmsdError, match="no images: give image files"):
        find_images([])


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_folders_are_searched_for_images_and_files_are_taken_as_given(folder: Path) -> None:
    assert names(find_images([folder])) == ["a.JPG", "b.png", "c.webp", "drawn.png"]
    assert names(find_images([folder], (".mp4",), exclude=folder / "deep" / "out")) == [
        "a.JPG",
        "b.png",
        "clip.mp4",
        "c.webp",
    ]
    assert names(find_images([folder / "notes.txt", folder / "deep", folder / "deep" / "c.webp"])) == [
        "notes.txt",
        "c.webp",
        "drawn.png",
    ]
    assert names(find_images([folder / "deep" / "out"], exclude=folder / "deep" / "out")) == ["drawn.png"]


def test_missing_paths_and_folders_without_images_are_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DfmsdError, match=r"^https://a\.org/b\.jpg: a URL, which is not read; download"):
        find_images(["https://a.org/b.jpg"])
    with pytest.raises(DfmsdError, match="nowhere: no such file or folder; give images"):
        find_images([folder, folder / "nowhere"])
    with pytest.raises(DfmsdError, match="empty: no image in this folder or its subfolders"):
        find_images([folder / "empty"])


def test_a_batch_of_one_image_equals_that_of_the_data_set(tiny_root: Path) -> None:
    coco = open_split(tiny_root, "val")
    batch, sample = to_batch(read_image(coco.records[0].path), 64, 7), DetectionDataset(coco, 64)[0]
    height, width = sample.image.shape[-2:]
    assert batch.images.shape == (1, 3, 64, 64)
    assert torch.equal(batch.images[0, :, :height, :width], sample.image / 255)
    assert (batch.sizes, batch.scales, batch.image_ids) == ([(height, width)], [sample.scale], [7])
    assert batch.targets[0]["boxes"].shape == (0, 4)
    assert torch.equal(to_batch([sample.image] * 2, 64).images, batch.images.repeat(2, 1, 1, 1))
