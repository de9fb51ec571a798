from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from dfmsd.data.multiscale import MultiScale, resize_batch
from dfmsd.types import Batch, Target

SIZES = (32, 64, 96)


def batch_of(height: int = 64, width: int = 96) -> Batch:
    """Two labeled images, of which the first has a white object, and an unlabeled one."""
    images = torch.zeros(3, 3, height, width)
    images[0, :, 8:40, 16:56] = 1
    targets: list[Target] = [
        {"boxes": torch.tensor([[16.0, 8, 56, 40]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    sizes, scales = [(height, width), (height, width // 2), (height, width)], [(0.5, 0.25)] * 3
    return Batch(images, targets, sizes, scales, [4, 5, 6], ["a", None, None])


def extent(image: Tensor) -> list[int]:
    rows, columns = (image[0] > 0.5).nonzero().T
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize(("factor", "size"), [(0.5, (32, 64)), (1.5, (96, 128)), (2.0, (128, 192)), (0.1, (32, 32))])
def test_boxes_follow_the_objects(factor: float, size: tuple[int, int]) -> None:
    resized = resize_batch(batch_of(), factor)
    assert resized.images.shape == (3, 3, *size)
    (box,) = resized.targets[0]["boxes"]
    assert box.tolist() == pytest.approx(extent(resized.images[0]), abs=1)
    vertical, horizontal = size[0] / 64, size[1] / 96
    assert resized.sizes == [(size[0], size[1]), (size[0], size[1] // 2), (size[0], size[1])]
    assert resized.scales == [pytest.approx((0.5 * vertical, 0.25 * horizontal))] * 3
    assert resized.image_ids == [4, 5, 6]
    assert resized.keys == [None] * 3
    assert resized.targets[1]["boxes"].shape == (0, 4)


def test_a_batch_of_the_right_size_is_left_alone() -> None:
    batch = batch_of()
    assert resize_batch(batch, 1.0) is batch
    assert resize_batch(batch, 1.1) is batch


def test_the_memory_layout_is_kept() -> None:
    batch = batch_of()
    batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
    assert resize_batch(batch, 2.0).images.is_contiguous(memory_format=torch.channels_last)


def sides(seed: int, epoch: int, batches: int = 60) -> list[int]:
    resize = MultiScale(64, SIZES, seed)
    return [resize(batch_of(64, 64), epoch, index).images.shape[-1] for index in range(batches)]


def test_the_size_follows_from_seed_epoch_and_batch() -> None:
    drawn = sides(0, 0)
    torch.manual_seed(5)
    assert sides(0, 0) == drawn
    assert sides(0, 1) != drawn != sides(1, 0)
    counts = Counter(drawn)
    assert set(counts) == set(SIZES)
    assert min(counts.values()) > 10
