"""Images with more pixels for the teachers: the same ones, changed in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.augmentation import Augmentation
from dfmsd.data.batching import collate
from dfmsd.data.dataset import DetectionDataset

AUGMENTATIONS: list[dict[str, Any]] = [
    {"flip": 0.5},
    {"scale_jitter": (0.6, 1.4)},
    {"zoom_out": 1.0},
    {"photometric": 1.0},
    {"mosaic": 1.0, "scale_jitter": (0.5, 2.0)},
    {"mixup": 1.0, "scale_jitter": (0.9, 1.1)},
]


def module(root: Path, **values: Any) -> CocoDataModule:
    config = DataConfig(str(root), image_size=96, batch_size=4, workers=0, **values)
    return CocoDataModule(config, teacher_size=160, digest=True)


def shrunk(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


@pytest.mark.parametrize("values", AUGMENTATIONS, ids=lambda values: "+".join(values))
def test_the_larger_image_is_changed_in_the_same_way(values: dict[str, Any], tiny_root: Path) -> None:
    coco = module(tiny_root).train.coco
    larger = DetectionDataset(coco, 160, Augmentation(160, **values))
    dataset = DetectionDataset(coco, 96, Augmentation(96, **values), larger=larger)
    samples = [dataset[epoch, index] for epoch in range(2) for index in range(len(dataset))]
    batch = collate(samples, 96, 160)
    assert batch.larger is not None
    assert batch.larger.shape == (len(samples), 3, 160, 160)
    difference = (shrunk(batch.larger, 96) - batch.images).abs().mean(dim=(1, 2, 3))
    others = (shrunk(batch.larger, 96).roll(1, 0) - batch.images).abs().mean(dim=(1, 2, 3))
    assert difference.max() < 0.02 < others.mean()


def test_the_student_s_image_does_not_depend_on_the_larger_one(tiny_root: Path) -> None:
    config = DataConfig(str(tiny_root), image_size=96, batch_size=4, workers=0, augment="strong")
    plain, both = (next(iter(CocoDataModule(config, teacher_size=size).train_dataloader())) for size in (None, 128))
    assert torch.equal(plain.images, both.images)
    assert plain.larger is None
    assert plain.for_teachers is plain.images
    assert both.for_teachers is both.larger
    assert both.to("cpu").larger is not None


def test_keys_are_those_of_the_larger_image(tiny_root: Path) -> None:
    config = DataConfig(str(tiny_root), image_size=160, batch_size=4, workers=0)
    alone = CocoDataModule(config, digest=True).train
    both = module(tiny_root).train
    assert [both[index].digest for index in range(4)] == [alone[index].digest for index in range(4)]


def test_images_for_a_fit_and_for_evaluation_have_the_teachers_size_too(tiny_root: Path) -> None:
    data = module(tiny_root)
    (batch, *_) = data.sample_batches(4)
    assert batch.images.shape[-1] == 96
    assert batch.for_teachers.shape[-1] == 160
    assert next(iter(data.val_dataloader())).images.shape[-1] == 96
    seen = next(iter(data.teacher_val_dataloader()))
    assert seen.images.shape[-1] == 160
    assert seen.image_ids == next(iter(data.val_dataloader())).image_ids


@pytest.mark.parametrize("cache", ["ram", "disk", "off"])
def test_larger_images_are_cached_like_the_others(
    cache: str, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path))
    data = module(tiny_root, cache=cache)
    first, again = data.train[0], data.train[0]
    assert first.larger is not None
    assert again.larger is not None
    assert torch.equal(first.larger, again.larger)
    assert first.larger.shape[-1] > first.image.shape[-1]
