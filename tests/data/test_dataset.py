from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dfmsd.data import Augmentation, DetectionDataset, DetectionSplit, EpochSampler, Sample, collate, open_split
from dfmsd.data.dataset import file_key
from dfmsd.data.records import Records
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch
from dfmsd.utils.store import DiskStore


@pytest.fixture
def coco(tiny_coco: Path) -> DetectionSplit:
    return open_split(tiny_coco, "train")


def augmented(coco: DetectionSplit, *, seed: int = 0, cache: bool = False) -> DetectionDataset:
    return DetectionDataset(coco, 64, Augmentation(64, scale_jitter=(0.5, 1.5)), cache=cache, seed=seed)


def epoch_of(dataset: DetectionDataset, epoch: int, workers: int = 0) -> list[Batch]:
    sampler = EpochSampler(len(dataset), dataset.seed)
    sampler.set_epoch(epoch)
    fn = partial(collate, image_size=64)
    return list(DataLoader(dataset, batch_size=3, sampler=sampler, num_workers=workers, collate_fn=fn))


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return all(
        x.image_ids == y.image_ids
        and torch.equal(x.images, y.images)
        and all(torch.equal(s["boxes"], t["boxes"]) for s, t in zip(x.targets, y.targets, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def test_data_do_not_depend_on_the_global_generators(coco: DetectionSplit) -> None:
    first = epoch_of(augmented(coco), 3)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert same(first, epoch_of(augmented(coco), 3))


def test_data_are_the_same_with_and_without_workers_and_cache(coco: DetectionSplit) -> None:
    dataset = augmented(coco, cache=True)
    epochs = [epoch_of(dataset, epoch) for epoch in range(2)]  # the second from the cache
    assert same(epochs[1], epoch_of(augmented(coco), 1))
    assert same(epochs[1], epoch_of(augmented(coco), 1, workers=2))


def test_order_and_augmentation_differ_between_epochs_and_seeds(coco: DetectionSplit) -> None:
    dataset = augmented(coco)
    assert not torch.equal(dataset[0, 0].image, dataset[1, 0].image)
    assert not torch.equal(dataset[0, 0].image, augmented(coco, seed=1)[0, 0].image)
    orders = {
        tuple(i for b in epoch_of(augmented(coco, seed=s), e) for i in b.image_ids) for s in (0, 1) for e in (0, 1)
    }
    assert len(orders) == 4


def test_a_plain_index_is_epoch_0_and_others_are_out_of_range(coco: DetectionSplit) -> None:
    dataset = augmented(coco)
    assert torch.equal(dataset[2].image, dataset[0, 2].image)
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    with pytest.raises(IndexError):
        dataset[0, -1]


def test_the_cache_decodes_each_image_once_and_keeps_it_unaugmented(
    coco: DetectionSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    original = DetectionSplit.__getitem__
    monkeypatch.setattr(DetectionSplit, "__getitem__", lambda self, i: (decoded.append(i), original(self, i))[1])
    plain = DetectionDataset(coco, 64)
    dataset = augmented(coco, cache=True)
    for epoch in range(3):
        for index in range(len(dataset)):
            dataset[epoch, index]
    assert sorted(decoded) == list(range(len(dataset)))

    def content(sample: Sample) -> tuple[object, ...]:
        return sample.image.tolist(), sample.target["boxes"].tolist(), sample.scale

    assert [content(dataset._resized(i)) for i in range(8)] == [content(plain[i]) for i in range(8)]


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path / "store", 10**9)


def test_a_stored_image_equals_the_decoded_one_and_has_current_boxes(coco: DetectionSplit, store: DiskStore) -> None:
    plain, stored = DetectionDataset(coco, 64), DetectionDataset(coco, 64, store=store)
    for _ in range(2):
        for index in range(len(coco)):
            a, b = plain[index], stored[index]
            assert torch.equal(a.image, b.image)
            assert a.image.stride() == b.image.stride()
            assert torch.equal(a.target["boxes"], b.target["boxes"])
            assert type(a.target["boxes"]) is type(b.target["boxes"]) is torch.Tensor
            assert torch.equal(a.target["labels"], b.target["labels"])
            assert (a.scale, a.image_id, a.digest) == (b.scale, b.image_id, b.digest)
    record = coco.records[0]
    coco.records = Records.of(
        [record._replace(boxes=record.boxes[:1] / 2, labels=record.labels[:1]), *coco.records[1:]]
    )
    assert torch.equal(stored[0].target["boxes"], DetectionDataset(coco, 64)[0].target["boxes"])


def test_a_changed_image_file_is_decoded_again(coco: DetectionSplit, store: DiskStore) -> None:
    dataset = DetectionDataset(coco, 64, store=store)
    before, record = dataset[0].image, coco.records[0]
    Image.new("RGB", (record.width, record.height), (255, 0, 0)).save(record.path)
    after = dataset[0].image
    assert not torch.equal(before, after)
    assert torch.equal(after, DetectionDataset(coco, 64)[0].image)


def test_a_wrong_image_size_is_refused_with_a_store_too(coco: DetectionSplit, store: DiskStore) -> None:
    dataset = DetectionDataset(coco, 64, store=store)
    record = coco.records[0]
    assert dataset[0].image_id == record.id
    coco.records = Records.of([record._replace(height=3 * record.height), *coco.records[1:]])
    with pytest.raises(DfmsdError, match="correct width, height and boxes"):
        dataset[0]
    coco.records[0].path.unlink()
    with pytest.raises(DfmsdError, match="cannot be decoded"):
        dataset[0]


@pytest.mark.parametrize("damaged", [{"image": torch.zeros(3, 64, 64)}, {"other": torch.zeros(1)}])
def test_an_invalid_entry_is_replaced(coco: DetectionSplit, store: DiskStore, damaged: dict[str, torch.Tensor]) -> None:
    dataset = DetectionDataset(coco, 64, store=store)
    key = file_key(coco.records[0].path, 64)
    store.put(key, damaged)
    assert torch.equal(dataset[0].image, DetectionDataset(coco, 64)[0].image)
    assert store.get(key).keys() == {"image"}  # type: ignore[union-attr]


def test_the_digest_identifies_the_pixels(coco: DetectionSplit, store: DiskStore) -> None:
    def digests(**options: object) -> list[str | None]:
        dataset = DetectionDataset(coco, 64, digest=True, **options)  # type: ignore[arg-type]
        return [dataset[index].digest for index in range(len(coco))] + [dataset[1].digest]

    plain = digests()
    assert len(set(plain)) == len(coco)
    assert None not in plain
    assert digests(cache=True) == digests(store=store) == digests(store=store) == plain
    mirrored = digests(augmentation=Augmentation(64, flip=1.0))
    assert not set(mirrored) & set(plain)
    assert len(set(mirrored)) == len(coco)
    assert set(digests(augmentation=Augmentation(64, scale_jitter=(0.5, 1.5)))) == {None}
    assert DetectionDataset(coco, 64)[0].digest is None
    assert not set(plain) & {DetectionDataset(coco, 96, digest=True)[index].digest for index in range(len(coco))}


@pytest.fixture(scope="module")
def small(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DetectionDataset]:
    """Build data sets of the same three images, with each kind of cache."""
    coco = open_split(tiny_root, "train").subset(range(3))
    jitter, store = Augmentation(32, scale_jitter=(0.5, 1.5)), DiskStore(tmp_path_factory.mktemp("store"), 10**9)
    return {
        "off": DetectionDataset(coco, 32, jitter, seed=1),
        "ram": DetectionDataset(coco, 32, jitter, cache=True, seed=1),
        "disk": DetectionDataset(coco, 32, jitter, store=store, seed=1),
    }


@settings(max_examples=20, deadline=None)
@given(keys=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=6))
def test_a_sample_depends_on_its_key_only(small: dict[str, DetectionDataset], keys: list[tuple[int, int]]) -> None:
    expected = {key: small["off"][key] for key in sorted(keys)}
    for dataset in small.values():
        for key in keys:
            sample = dataset[key]
            assert torch.equal(sample.image, expected[key].image)
            assert torch.equal(sample.target["boxes"], expected[key].target["boxes"])
            assert torch.equal(sample.target["labels"], expected[key].target["labels"])
            assert sample.scale == expected[key].scale
