from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.dataset import DetectionDataset
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch


def config(root: Path, **values: Any) -> DataConfig:
    return DataConfig(**{"root": str(root), "image_size": 64, "batch_size": 3, **values})


def test_loaders_give_batches(tiny_coco: Path) -> None:
    data = CocoDataModule(config(tiny_coco))
    assert data.class_names == ("square", "disc")
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        assert isinstance(batch, Batch)
        assert batch.images.shape[1:] == (3, 64, 64)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        assert all(max(size) == 64 for size in batch.sizes)


def test_val_has_every_image_once_in_file_order_without_augmentation(tiny_coco: Path) -> None:
    data = CocoDataModule(config(tiny_coco, flip=1.0, scale_jitter=(0.5, 2.0)))
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert [i for batch in first for i in batch.image_ids] == [1, 2, 3, 4]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    coco = data.val.coco
    for sample, record in zip((data.val[i] for i in range(4)), coco.records, strict=True):
        vertical, horizontal = sample.scale
        back = sample.target["boxes"] / torch.tensor([horizontal, vertical] * 2)
        assert torch.allclose(back, record.boxes, atol=1e-3)


def test_sizes_of_training_boxes_are_those_of_the_input(tiny_coco: Path) -> None:
    data = CocoDataModule(config(tiny_coco, image_size=32, scale_jitter=(0.5, 2.0)))
    resized = DetectionDataset(data.train.coco, 32)
    boxes = torch.cat([resized[index].target["boxes"] for index in range(len(resized))])
    expected = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    assert len(expected) > 7
    assert torch.allclose(data.train_box_sizes(), expected, atol=1e-3)


@pytest.mark.parametrize(("batch_size", "lengths"), [(3, [3, 3]), (7, [7]), (8, [8]), (16, [8])])
def test_train_drops_a_short_last_batch_unless_it_is_the_only_one(
    tiny_coco: Path, batch_size: int, lengths: list[int]
) -> None:
    loader = CocoDataModule(config(tiny_coco, batch_size=batch_size)).train_dataloader()
    assert [len(batch.image_ids) for batch in loader] == lengths


def test_pad_batch_pads_no_more_than_needed(tiny_coco: Path) -> None:
    data = CocoDataModule(config(tiny_coco, image_size=96, batch_size=1, pad="batch"))
    for batch in data.val_dataloader():
        assert tuple(batch.images.shape[-2:]) == tuple(-(-side // 32) * 32 for side in batch.sizes[0])


def test_loaders_leave_the_global_generator_alone(tiny_coco: Path) -> None:
    data = CocoDataModule(config(tiny_coco))
    before = torch.get_rng_state()
    assert len(list(data.train_dataloader())) + len(list(data.val_dataloader())) == 4
    assert torch.equal(before, torch.get_rng_state())


def test_sample_batches_disturb_neither_the_loader_nor_the_global_generators(tiny_coco: Path) -> None:
    whole, sampled = (CocoDataModule(config(tiny_coco, scale_jitter=(0.5, 1.0))) for _ in range(2))
    loader = sampled.train_dataloader()
    expected, disturbed = iter(whole.train_dataloader()), iter(loader)
    assert torch.equal(next(expected).images, next(disturbed).images)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    batches = list(sampled.sample_batches(4))
    assert sum(len(batch.images) for batch in batches) == 4
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])
    assert loader.state_dict() == {"given": 1}
    assert torch.equal(next(expected).images, next(disturbed).images)


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(tuple(batch.image_ids))
        return self.weight * batch.images.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_trainer_sets_the_epoch_of_the_sampler(tiny_coco: Path, tmp_path: Path) -> None:
    data, module = CocoDataModule(config(tiny_coco, batch_size=4), seed=5), Recorder()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    expected = []
    for epoch in range(3):
        loader = CocoDataModule(config(tiny_coco, batch_size=4), seed=5).train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        expected += [tuple(batch.image_ids) for batch in loader]
    assert module.seen == expected
    assert len(set(module.seen)) == 6


def test_a_holdout_of_train_replaces_val(tiny_coco: Path) -> None:
    whole, parted = CocoDataModule(config(tiny_coco)), CocoDataModule(config(tiny_coco, holdout=0.4))
    train, held_out = ({record.id for record in part.coco.records} for part in (parted.train, parted.val))
    assert train | held_out == {record.id for record in whole.train.coco.records}
    assert not train & held_out
    truth = parted.val.coco.ground_truth
    assert {image["id"] for image in truth["images"]} == held_out
    assert {entry["image_id"] for entry in truth["annotations"]} <= held_out
    boxes = sum(len(record.boxes) for record in parted.val.coco.records)
    assert len(truth["annotations"]) == boxes > 0
    assert all(record.path.parent.name == "train" for record in parted.val.coco.records)


def test_the_holdout_depends_on_the_file_names_only(tiny_coco: Path) -> None:
    file = tiny_coco / "annotations" / "instances_train.json"
    first = [record.path.name for record in CocoDataModule(config(tiny_coco, holdout=0.4)).val.coco.records]
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "images": content["images"][::-1]}))
    second = [record.path.name for record in CocoDataModule(config(tiny_coco, holdout=0.4), seed=7).val.coco.records]
    assert first == second[::-1]
    less = {record.path.name for record in CocoDataModule(config(tiny_coco, holdout=0.3)).val.coco.records}
    assert less <= set(first)


def test_an_empty_holdout_is_refused(tiny_coco: Path) -> None:
    with pytest.raises(DfmsdError, match=r"data.holdout: a share of 0.001 holds out 0 of 8 images; choose one"):
        CocoDataModule(config(tiny_coco, holdout=0.001))


def test_a_negative_seed_is_refused(tiny_coco: Path) -> None:
    with pytest.raises(DfmsdError, match="seed must be at least 0, got -1"):
        CocoDataModule(config(tiny_coco), seed=-1)


def test_splits_with_different_classes_are_refused(tiny_coco: Path) -> None:
    file = tiny_coco / "annotations" / "instances_val.json"
    raw = json.loads(file.read_text())
    raw["categories"][0]["name"] = "circle"
    file.write_text(json.dumps(raw))
    with pytest.raises(DfmsdError, match=r"instances_val.json: classes \['circle', 'disc'\] differ"):
        CocoDataModule(config(tiny_coco))


def test_the_ram_cache_needs_enough_budget_and_no_workers(tiny_coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    fits = CocoDataModule(config(tiny_coco))
    assert fits.workers == 0
    assert fits.train._cache is not None
    need = sum(fits.train[i].image.nbytes + (fits.val[i].image.nbytes if i < 4 else 0) for i in range(8))
    assert CocoDataModule(config(tiny_coco, workers=1)).train._cache is None
    assert CocoDataModule(config(tiny_coco, cache=False)).train._cache is None
    assert CocoDataModule(config(tiny_coco, cache=True)).train._cache is not None
    with caplog.at_level(logging.INFO, "dfmsd"):
        large = CocoDataModule(config(tiny_coco, cache_gib=(need - 1) / 2**30))
    assert large.train._cache is None
    assert large.workers == min(4, len(os.sched_getaffinity(0)) - 1)
    assert sum("of ram, more than" in record.getMessage() for record in caplog.records) == 1
    assert CocoDataModule(config(tiny_coco, cache_gib=need / 2**30)).train._cache is not None


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (4, 1, 3), (64, 1, 4), (8, 4, 1)])
def test_one_core_is_left_to_the_training(
    tiny_coco: Path, monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert CocoDataModule(config(tiny_coco, cache="off"), processes=processes).workers == workers


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_the_disk_cache_decodes_once_for_all_processes_and_runs(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))
    expected = list(CocoDataModule(config(tiny_coco, cache="off"), seed=2).train_dataloader())
    for _ in range(2):
        data = CocoDataModule(config(tiny_coco, cache="disk", workers=workers), seed=2)
        assert data.workers == (workers or 0)
        found = list(data.train_dataloader())
        assert [batch.image_ids for batch in found] == [batch.image_ids for batch in expected]
        assert all(torch.equal(a.images, b.images) for a, b in zip(found, expected, strict=True))
        # the images of the last, incomplete batch were never asked for
        monkeypatch.setattr("dfmsd.data.dataset.fit", lambda *_: pytest.fail("decoded again"))
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == sum(len(batch.image_ids) for batch in expected)


def test_the_disk_cache_has_one_store_per_data_set_and_size_and_evicts_others(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))

    def fill(image_size: int, gib: float) -> set[Path]:
        data = CocoDataModule(config(tiny_coco, image_size=image_size, cache="disk", cache_gib=gib))
        for dataset in (data.train, data.val):
            assert len([dataset[index] for index in range(len(dataset))]) == len(dataset)
        return set((tmp_path / "cache" / "images").iterdir())

    small = fill(32, 1.0)
    both = fill(64, 1.0)
    assert len(small) == 1
    assert len(both) == 2
    assert both > small
    need = 12 * 3 * 64 * 64
    assert fill(64, need / 2**30) == both - small
    with caplog.at_level(logging.INFO, "dfmsd"):
        assert fill(96, need / 2**30) == both - small
    assert sum("of disk, more than" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "images", "classes"),
    [("bccd", (292, 72), 3), ("aquarium", (448, 190), 7), ("hituav_tiles", (967, 548), 3), ("tinycoco", (50, 50), 80)],
)
def test_real_data_sets_load_completely(shared_data: Path, name: str, images: tuple[int, int], classes: int) -> None:
    data = CocoDataModule(config(shared_data / name, image_size=192, batch_size=16))
    assert (len(data.train), len(data.val)) == images
    assert len(data.class_names) == classes
    for dataset in (data.train, data.val):
        for index in range(len(dataset)):
            sample = dataset[index]
            height, width = sample.image.shape[-2:]
            boxes = sample.target["boxes"]
            assert max(height, width) == 192
            assert bool(((boxes >= 0) & (boxes <= torch.tensor([width, height] * 2) + 1e-3)).all())
            assert bool((boxes[:, 2:] > boxes[:, :2]).all())


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_fetched_ahead_by_workers_that_stay_and_pinned_for_a_gpu(
    tiny_coco: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, workers: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    data = CocoDataModule(config(tiny_coco, workers=workers))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert loader.pin_memory == gpu
        assert loader.persistent_workers == (workers > 0)
        assert loader.prefetch_factor == (2 if workers else None)
