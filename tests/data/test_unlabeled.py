from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.unlabeled import unlabeled_records
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for name, size in {"a.png": (40, 30), "deep/b.jpg": (20, 50), "c.PNG": (10, 10)}.items():
        Image.new("RGB", size, "red").save(tmp_path / "more" / name)
    (tmp_path / "more" / "notes.txt").write_text("no image")
    return tmp_path / "more"


def module(root: Path, **values: Any) -> CocoDataModule:
    return CocoDataModule(DataConfig(**{"root": str(root), "image_size": 64, "batch_size": 3, **values}))


def test_records_are_the_images_of_a_folder_and_its_subfolders(folder: Path) -> None:
    records = unlabeled_records(folder)
    assert [(record.id, record.path.name, record.width, record.height) for record in records] == [
        (-1, "a.png", 40, 30),
        (-2, "c.PNG", 10, 10),
        (-3, "b.jpg", 20, 50),
    ]
    assert all(not record.labeled and record.boxes.shape == (0, 4) for record in records)


def test_the_size_of_a_rotated_photo_is_that_after_decoding(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    (record,) = unlabeled_records(tmp_path)
    assert (record.width, record.height) == (30, 40)


def test_images_of_the_data_set_itself_are_skipped(folder: Path, tiny_coco: Path) -> None:
    shutil.copy(folder / "a.png", tiny_coco / "train" / "extra.png")
    found = unlabeled_records(tiny_coco / "train", [record.path for record in module(tiny_coco).train.coco.records])
    assert [record.path.name for record in found] == ["extra.png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "data.unlabeled: no folder"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "holds 0 images"),
        (lambda folder: (folder / "a.png").write_bytes(b"?") and folder, "a.png: cannot be decoded as an image"),
    ],
)
def test_bad_folders_are_refused(folder: Path, make: Any, message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        unlabeled_records(make(folder))


def test_batches_end_with_images_without_targets(tiny_coco: Path, folder: Path) -> None:
    data = module(tiny_coco, unlabeled=str(folder), unlabeled_ratio=0.67)
    assert (data.num_labeled, len(data.train)) == (8, 11)
    assert data.example_indices == [0, 1, 2, 8, 9]
    batches = list(data.train_dataloader())
    assert [len(batch.images) for batch in batches] == [5, 5]
    for batch in batches:
        assert isinstance(batch, Batch)
        assert len(batch.targets) == 3
        assert all(number > 0 for number in batch.image_ids[:3])
        assert all(number < 0 for number in batch.image_ids[3:])


def test_unlabeled_images_stay_unlabeled_with_jitter_and_caches(tiny_coco: Path, folder: Path) -> None:
    for options in ({"scale_jitter": (0.5, 2.0)}, {"cache": "off"}):
        data = module(tiny_coco, unlabeled=str(folder), **options)
        for _ in range(2):
            assert [len(batch.targets) for batch in data.train_dataloader()] == [3, 3]
