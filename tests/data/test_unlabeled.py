from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.data.unlabeled import unlabeled_records, with_boxes
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


def test_images_of_the_test_split_are_skipped(tiny_coco: Path) -> None:
    shutil.copytree(tiny_coco / "val", tiny_coco / "test")
    shutil.copy(tiny_coco / "annotations" / "instances_val.json", tiny_coco / "annotations" / "instances_test.json")
    shutil.copy(tiny_coco / "val" / "val_0.jpg", tiny_coco / "extra.jpg")
    data = module(tiny_coco, unlabeled=str(tiny_coco))
    assert [record.path.name for record in data.unlabeled.records] == ["extra.jpg"]


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


def labels(**boxes: list[tuple[float, float, float, float]]) -> dict[str, Any]:
    """A COCO file of the images of `folder`, with discs; keys are the first letters of their names."""
    names = {"a": "a.png", "b": "deep/b.jpg", "c": "c.PNG"}
    images = [{"id": number, "file_name": names[key]} for number, key in enumerate(names, 1)]
    ids = dict(zip(names, (1, 2, 3), strict=True))
    annotations = [
        {"image_id": ids[key], "category_id": 3, "bbox": list(box)} for key, found in boxes.items() for box in found
    ]
    return {"images": images, "annotations": annotations}


def test_pseudo_labels_become_boxes_of_their_images_and_the_others_stay_unlabeled(folder: Path) -> None:
    content = labels(b=[(1, 2, 10, 20), (15, 40, 10, 20)], c=[(10, 3, 2, 2)])
    b, a, c = with_boxes(unlabeled_records(folder), content, folder, (1, 3))
    assert [record.path.name for record in (b, a, c)] == ["b.jpg", "a.png", "c.PNG"]
    assert b.boxes.tolist() == [[1, 2, 11, 22], [15, 40, 20, 50]]  # clipped to the image
    assert b.boxes.dtype == torch.float32
    assert b.labels.tolist() == [1, 1]
    assert [record.labeled for record in (b, a, c)] == [True, False, False]  # the box of c is beyond the image


def test_an_image_that_was_never_labeled_is_refused(folder: Path) -> None:
    content = labels(a=[(1, 2, 10, 20)])
    Image.new("RGB", (8, 8)).save(folder / "deep" / "new.png")
    with pytest.raises(DfmsdError, match=r"^data.unlabeled: there are no pseudo-labels of deep/new.png"):
        with_boxes(unlabeled_records(folder), content, folder, (1, 3))


def test_batches_have_targets_of_labeled_and_pseudo_labeled_images_first(tiny_coco: Path, folder: Path) -> None:
    data = module(tiny_coco, unlabeled=str(folder), pseudo=PseudoConfig("auto"))
    data.add_pseudo_labels(labels(a=[(1, 2, 10, 20)], b=[(1, 2, 10, 20)]), keep_others=True)
    assert (data.num_labeled, len(data.train)) == (8, 11)
    assert [record.labeled for record in data.unlabeled.records] == [True, True, False]
    assert len(data.labeled) == 8
    for batch in data.train_dataloader():
        assert len(batch.images) == 6
        assert len(batch.targets) == 5
        assert all(number > 0 for number in batch.image_ids[:3])
        assert batch.image_ids[5] == next(record.id for record in data.unlabeled.records if not record.labeled)
        assert all(target["labels"].tolist() == [1] for target in batch.targets[3:])


def test_images_without_pseudo_labels_are_left_out_where_nothing_learns_from_them(
    tiny_coco: Path, folder: Path
) -> None:
    data = module(tiny_coco, unlabeled=str(folder), pseudo=PseudoConfig("auto"))
    data.add_pseudo_labels(labels(a=[(1, 2, 10, 20)]), keep_others=False)
    assert [record.path.name for record in data.unlabeled.records] == ["a.png"]
    assert all(len(batch.targets) == len(batch.images) == 6 for batch in data.train_dataloader())


def test_labeled_images_are_those_of_a_run_without_pseudo_labels(tiny_coco: Path, folder: Path) -> None:
    plain, pseudo = module(tiny_coco), module(tiny_coco, unlabeled=str(folder), pseudo=PseudoConfig("auto"))
    pseudo.add_pseudo_labels(labels(a=[(1, 2, 10, 20)]), keep_others=False)
    for expected, batch in zip(plain.train_dataloader(), pseudo.train_dataloader(), strict=False):
        assert batch.image_ids[:3] == expected.image_ids
        assert torch.equal(batch.images[:3], expected.images)
        pairs = zip(batch.targets, expected.targets, strict=False)
        assert all(torch.equal(own["boxes"], other["boxes"]) for own, other in pairs)


def test_no_pseudo_label_at_all_is_refused(tiny_coco: Path, folder: Path) -> None:
    data = module(tiny_coco, unlabeled=str(folder), pseudo=PseudoConfig("auto"))
    with pytest.raises(DfmsdError, match=r"^data.pseudo: no detection in the 3 images of .* is confident enough; "):
        data.add_pseudo_labels(labels(), keep_others=True)


def test_pseudo_labels_of_another_process_are_read_when_training_starts(tiny_coco: Path, folder: Path) -> None:
    data, file = module(tiny_coco, unlabeled=str(folder), pseudo=PseudoConfig("auto")), tiny_coco / "pseudo_labels.json"
    data.await_pseudo_labels(file, keep_others=False)
    file.write_text(json.dumps(labels(a=[(1, 2, 10, 20)])))
    data.setup("fit")
    assert len(data.train) == 9


def test_assumed_pseudo_labels_are_of_all_images(tiny_coco: Path, folder: Path) -> None:
    data = module(tiny_coco, unlabeled=str(folder), pseudo=PseudoConfig("auto"))
    data.assume_pseudo_labels()
    assert all(len(batch.targets) == len(batch.images) == 6 for batch in data.train_dataloader())
