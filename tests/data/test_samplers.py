from __future__ import annotations

from itertools import chain, product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfmsd.data.samplers import EpochSampler, MixedSampler


def test_the_sampler_yields_every_index_once_with_the_epoch() -> None:
    sampler = EpochSampler(10, seed=4)
    sampler.set_epoch(7)
    keys = list(sampler)
    assert len(sampler) == 10
    assert {epoch for epoch, _ in keys} == {7}
    assert sorted(index for _, index in keys) == list(range(10))
    assert keys == list(sampler)


def test_processes_share_an_epoch_evenly() -> None:
    parts = [list(EpochSampler(10, seed=1, rank=rank, world=4)) for rank in range(4)]
    assert [len(part) for part in parts] == [3] * 4
    interleaved = [parts[k % 4][k // 4] for k in range(10)]
    assert interleaved == list(EpochSampler(10, seed=1))


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 20),
    unlabeled=st.integers(1, 20),
    batch_size=st.integers(1, 6),
    extra=st.integers(1, 9),
    world=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_batches_have_labeled_images_first_and_ranks_share_the_unlabeled_ones(
    length: int, unlabeled: int, batch_size: int, extra: int, world: int, epoch: int
) -> None:
    others = []
    for number, rank in product(range(epoch + 1), range(world)):
        sampler = MixedSampler(length, unlabeled, batch_size, extra, seed=1, rank=rank, world=world)
        plain = EpochSampler(length, seed=1, rank=rank, world=world)
        for each in (sampler, plain):
            each.set_epoch(number)
        keys, step = list(sampler), sampler.batch_size + extra
        batches = [keys[start : start + step] for start in range(0, len(keys), step)]
        assert len(keys) == len(sampler)
        assert batches
        labeled = list(chain.from_iterable(batch[: sampler.batch_size] for batch in batches))
        assert labeled == list(plain)[: len(labeled)]  # in the order of a run without unlabeled images
        assert len(plain) - len(labeled) < sampler.batch_size
        rest = list(chain.from_iterable(batch[sampler.batch_size :] for batch in batches))
        assert all(length <= index < length + unlabeled for _, index in rest)
        others += rest
    counts = torch.tensor([index - length for _, index in others]).bincount(minlength=unlabeled)
    assert counts.max() - counts.min() <= 1


def test_the_order_of_unlabeled_images_differs_between_epochs() -> None:
    sampler = MixedSampler(8, 30, 2, 4)
    first = [index for _, index in sampler]
    sampler.set_epoch(1)
    assert [index for _, index in sampler] != first
