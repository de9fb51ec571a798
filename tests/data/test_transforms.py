from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.data import Augmentation, Sample, collate, fit, hflip, random_rescale
from dfmsd.types import Target


def target(*boxes: list[float]) -> Target:
    return Target(boxes=torch.tensor(boxes).float().reshape(-1, 4), labels=torch.arange(len(boxes)))


def block(height: int, width: int, box: list[int]) -> Tensor:
    """Build a black image with one white rectangle."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    return image


def white_box(image: Tensor) -> list[float]:
    """Return the bounding box of bright pixels, xyxy: the position of the object according to the pixels."""
    rows, columns = (image.float().mean(0) > 127).nonzero(as_tuple=True)
    return [float(x) for x in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(50, 100, (32, 64)), (100, 50, (64, 32)), (30, 20, (64, 43)), (64, 64, (64, 64)), (200, 1, (64, 1))],
)
def test_fit_makes_the_longer_side_the_image_size(height: int, width: int, size: tuple[int, int]) -> None:
    sample = fit(torch.zeros(3, height, width, dtype=torch.uint8), target(), 64, image_id=5)
    assert sample.image.shape[-2:] == size
    assert sample.image.dtype == torch.uint8
    assert sample.scale == (size[0] / height, size[1] / width)
    assert sample.image_id == 5


def test_fit_scales_boxes_with_the_pixels_and_the_scale_maps_them_back() -> None:
    box = [30, 12, 90, 60]
    sample = fit(block(100, 150, box), target([float(x) for x in box]), 64)
    assert sample.target["boxes"][0].tolist() == pytest.approx(white_box(sample.image), abs=0.6)
    vertical, horizontal = sample.scale
    back = sample.target["boxes"][0] / torch.tensor([horizontal, vertical, horizontal, vertical])
    assert back.tolist() == pytest.approx(box, abs=1e-4)


def test_fit_is_antialiased() -> None:
    stripes = torch.zeros(3, 128, 128, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    assert (fit(stripes, target(), 32).image.float() - 127.5).abs().max() < 16  # plain sampling gives 127.5


def test_hflip_flips_content_and_boxes_within_the_unpadded_width() -> None:
    sample = hflip(Sample(block(20, 40, [2, 5, 10, 15]), target([2, 5, 10, 15]), (1.0, 1.0), 0))
    assert sample.target["boxes"].tolist() == [[30, 5, 38, 15]]
    assert white_box(sample.image) == [30, 5, 38, 15]
    batch = collate([sample], 64)
    assert white_box(batch.images[0] * 255) == [30, 5, 38, 15]


def test_hflip_does_not_modify_its_input() -> None:
    sample = Sample(block(20, 40, [2, 5, 10, 15]), target([2, 5, 10, 15]), (1.0, 1.0), 0)
    hflip(sample)
    assert sample.target["boxes"].tolist() == [[2, 5, 10, 15]]
    assert white_box(sample.image) == [2, 5, 10, 15]


def test_rescaling_down_keeps_everything_top_left() -> None:
    sample = Sample(block(64, 48, [8, 16, 32, 48]), target([8, 16, 32, 48]), (2.0, 3.0), 0)
    small = random_rescale(sample, 0.5, 64, np.random.default_rng(0))
    assert small.image.shape == (3, 32, 24)
    assert small.scale == (1.0, 1.5)
    assert small.target["boxes"].tolist() == [[4, 8, 16, 24]]


@pytest.mark.parametrize("seed", range(8))
def test_rescaling_up_crops_a_window_with_its_boxes(seed: int) -> None:
    sample = Sample(
        block(64, 64, [24, 24, 40, 40]), target([24, 24, 40, 40], [0, 0, 1, 1], [63, 63, 64, 64]), (1.0, 1.0), 0
    )
    large = random_rescale(sample, 2.0, 64, np.random.default_rng(seed))
    assert large.image.shape == (3, 64, 64)
    assert large.scale == (2.0, 2.0)
    boxes, labels = large.target["boxes"], large.target["labels"]
    assert labels.tolist()[0] == 0  # the middle is in every window of half the image
    assert boxes[0].tolist() == pytest.approx(white_box(large.image), abs=1)
    assert len(boxes) == len(labels) < 3  # opposite corners are never in one window
    assert bool(((boxes >= 0) & (boxes <= 64)).all())
    assert bool((boxes[:, 2:] - boxes[:, :2] >= 1).all())


def test_rescaling_windows_differ_by_seed() -> None:
    sample = Sample(block(64, 64, [24, 24, 40, 40]), target([24, 24, 40, 40]), (1.0, 1.0), 0)
    windows = {
        tuple(random_rescale(sample, 1.5, 64, np.random.default_rng(s)).target["boxes"][0].tolist()) for s in range(5)
    }
    assert len(windows) == 5


def test_augmentation_flips_at_the_given_rate() -> None:
    sample = Sample(block(8, 8, [0, 0, 2, 2]), target([0, 0, 2, 2]), (1.0, 1.0), 0)
    rng = np.random.default_rng(0)

    def flipped(rate: float) -> int:
        augment = Augmentation(8, flip=rate)
        return sum(augment(sample, rng).target["boxes"][0, 0].item() == 6 for _ in range(400))

    assert flipped(0.0) == 0
    assert flipped(1.0) == 400
    assert 160 <= flipped(0.5) <= 240  # within 4 standard deviations


def samples() -> list[Sample]:
    sizes = [(20, 60), (50, 30)]
    return [
        Sample(torch.full((3, h, w), 255, dtype=torch.uint8), target([0, 0, 5, 5]), (0.5, 0.25), i)
        for i, (h, w) in enumerate(sizes)
    ]


@pytest.mark.parametrize(("image_size", "frame"), [(96, (96, 96)), (None, (64, 64))])
def test_collate_pads_right_and_bottom_with_black(image_size: int | None, frame: tuple[int, int]) -> None:
    batch = collate(samples(), image_size)
    assert batch.images.shape == (2, 3, *frame)
    assert batch.images.dtype == torch.float32
    assert batch.sizes == [(20, 60), (50, 30)]
    for image, (h, w) in zip(batch.images, batch.sizes, strict=True):
        assert bool((image[:, :h, :w] == 1).all())
        assert image.sum() == 3 * h * w
    assert batch.scales == [(0.5, 0.25)] * 2
    assert batch.image_ids == [0, 1]


def test_collate_without_image_size_rounds_each_side_up_to_32() -> None:
    assert collate(samples()[:1]).images.shape == (1, 3, 32, 64)


@pytest.mark.parametrize("decoded", [True, False], ids=["interleaved", "planar"])
@pytest.mark.parametrize("sizes", [[(64, 64)] * 3, [(40, 64), (64, 31), (1, 1)]], ids=["full", "padded"])
def test_collate_equals_padding_each_image_separately(sizes: list[tuple[int, int]], decoded: bool) -> None:
    images = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8).permute(2, 0, 1) for h, w in sizes]
    if not decoded:
        images = [image.contiguous() for image in images]
    batch = collate([Sample(image, target(), (1.0, 1.0), 0) for image in images], 64)
    for frame, image, (h, w) in zip(batch.images, images, sizes, strict=True):
        assert torch.equal(frame, F.pad(image.float().div(255), (0, 64 - w, 0, 64 - h)))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_collate_keeps_every_byte_apart() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    values = collate([Sample(levels, target(), (1.0, 1.0), 0)], 32).images[0, 0, :16, :16].flatten()
    assert torch.equal(values, torch.arange(256.0) / 255)


def test_targets_are_plain_tensors() -> None:
    sample = Augmentation(64, flip=1.0, scale_jitter=(0.5, 2.0))(
        fit(block(50, 80, [4, 4, 40, 40]), target([4, 4, 40, 40]), 64), np.random.default_rng(0)
    )
    assert type(sample.target["boxes"]) is Tensor
    assert type(sample.target["labels"]) is Tensor
    assert type(sample.image) is Tensor
