from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dfmsd.data import Augmentation, Sample
from dfmsd.data.mixing import mixup, mosaic
from dfmsd.data.targets import kept
from dfmsd.types import Target

SIDE = 64


def white_on_black(label: int, box: tuple[int, int, int, int] = (16, 16, 48, 40), side: int = SIDE) -> Sample:
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    target = Target(boxes=torch.tensor([box]).float(), labels=torch.tensor([label]))
    return Sample(image, target, (1.0, 1.0), label, digest=f"d{label}")


def partners(count: int) -> list[Sample]:
    return [white_on_black(label, (0, 0, 30, 16)) for label in range(1, count + 1)]


def inside(sample: Sample, box: Tensor) -> Tensor:
    """Return the pixels of the first channel in a box, rounded inwards."""
    left, top = box[:2].ceil().int().tolist()
    right, bottom = box[2:].floor().int().tolist()
    return sample.image[0, top:bottom, left:right]


SWITCHES: list[dict[str, Any]] = [
    {"scale_jitter": (0.5, 1.5)},
    {"photometric": 1.0},
    {"zoom_out": 1.0},
    {"iou_crop": 1.0},
    {"mosaic": 1.0},
    {"mixup": 1.0},
    {"scale_jitter": (0.5, 1.5), "photometric": 0.5, "zoom_out": 0.5, "iou_crop": 0.5, "mosaic": 0.5, "mixup": 0.5},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "+".join(switches))
def test_every_augmentation_follows_from_its_generator_and_leaves_the_global_one(switches: dict[str, Any]) -> None:
    augment = Augmentation(SIDE, **switches)
    state = torch.get_rng_state()
    images = []
    for seed in range(5):
        first, second = (augment(white_on_black(0), np.random.default_rng(seed), partners=partners) for _ in range(2))
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.target["boxes"], second.target["boxes"])
        images.append(first.image)
    assert torch.equal(torch.get_rng_state(), state)
    assert any(image.shape != images[0].shape or not torch.equal(image, images[0]) for image in images[1:])


def test_no_crop_is_searched_for_in_an_image_without_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: Any) -> None:
        raise AssertionError("searched for a crop")

    monkeypatch.setattr(v2.RandomIoUCrop, "make_params", search)
    sample = white_on_black(0)
    empty = sample._replace(target=kept(sample.target, torch.zeros(len(sample.target["boxes"]), dtype=torch.bool)))
    augment = Augmentation(SIDE, flip=0.0, iou_crop=1.0)
    assert torch.equal(augment(empty, np.random.default_rng(0)).image, empty.image)
    with pytest.raises(AssertionError, match="searched"):
        augment(sample, np.random.default_rng(0))


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "+".join(switches))
def test_boxes_stay_on_their_objects_within_the_frame(switches: dict[str, Any]) -> None:
    augment = Augmentation(SIDE, **{**switches, "photometric": 0.0, "mixup": 0.0})
    for seed in range(20):
        sample = augment(white_on_black(0), np.random.default_rng(seed), partners=partners)
        height, width = sample.image.shape[-2:]
        assert max(height, width) <= SIDE
        assert len(sample.target["boxes"]) == len(sample.target["labels"])
        for box in sample.target["boxes"]:
            assert bool((box >= 0).all())
            assert bool((box <= torch.tensor([width, height] * 2)).all())
            core = inside(sample, box + torch.tensor([1.0, 1.0, -1.0, -1.0]))
            assert core.numel() == 0 or core.float().mean() > 200
        total = sum(float((box[2] - box[0]) * (box[3] - box[1])) for box in sample.target["boxes"])
        assert int((sample.image[0] > 127).sum()) == pytest.approx(total, rel=0.25, abs=60)  # no object without a box


def test_a_change_that_is_off_draws_no_numbers() -> None:
    plain, jitter = Augmentation(SIDE, scale_jitter=(0.5, 1.5)), Augmentation(SIDE, scale_jitter=(0.5, 1.5), mixup=0.0)
    for seed in range(3):
        first = plain(white_on_black(0), np.random.default_rng(seed))
        second = jitter(white_on_black(0), np.random.default_rng(seed), partners=partners)
        assert torch.equal(first.image, second.image)


def test_changes_of_color_keep_what_is_red_red() -> None:
    """Blood cells differ in color, so no channel takes another one's place."""
    red = white_on_black(0)
    red.image[1:] = red.image[:1] // 4
    augment = Augmentation(SIDE, flip=0.0, photometric=1.0)
    changed = [augment(red, np.random.default_rng(seed)).image[:, 20:36, 20:44].float() for seed in range(40)]
    assert all(bool((image[0] >= image[1:].amax(dim=0)).all()) for image in changed)
    assert len({tuple(image.mean(dim=(1, 2)).tolist()) for image in changed}) == len(changed)


def test_only_a_flip_keeps_the_digest() -> None:
    assert Augmentation(SIDE, flip=1.0)(white_on_black(0), np.random.default_rng(0)).digest == "d0-flip"
    for switches in SWITCHES[:-1]:
        augmented = Augmentation(SIDE, **switches)(white_on_black(0), np.random.default_rng(0), partners=partners)
        assert augmented.digest is None


def test_the_last_epochs_are_not_mixed() -> None:
    augment = Augmentation(SIDE, flip=0.0, mosaic=1.0, mixup=1.0, mixing_epochs=3)
    mixed = [
        len(augment(white_on_black(0), np.random.default_rng(0), epoch, partners).target["labels"]) > 1
        for epoch in range(5)
    ]
    assert mixed == [True, True, True, False, False]


def test_an_image_without_partners_is_not_mixed() -> None:
    sample = Augmentation(SIDE, flip=0.0, mosaic=1.0, mixup=1.0)(white_on_black(0), np.random.default_rng(0))
    assert sample.target["labels"].tolist() == [0]


def test_mosaic_puts_each_image_into_its_quarter() -> None:
    samples = [white_on_black(label, (0, 0, SIDE, SIDE)) for label in range(4)]
    combined = mosaic(samples, SIDE, (1.0, 1.0), np.random.default_rng(0))
    assert combined.image.shape == (3, SIDE, SIDE)
    assert bool((combined.image == 255).all())  # images as big as the frame leave no gap
    boxes = combined.target["boxes"]
    column, row = boxes[0, 2:].tolist()
    side = float(SIDE)
    assert boxes.tolist() == [
        [0, 0, column, row],
        [column, 0, side, row],
        [0, row, column, side],
        [column, row, side, side],
    ]
    assert combined.target["labels"].tolist() == [0, 1, 2, 3]
    assert min(row, column) >= 0.3 * SIDE - 1
    assert max(row, column) <= 0.7 * SIDE + 1


def test_small_images_of_a_mosaic_touch_its_center() -> None:
    samples = [white_on_black(label, (0, 0, 8, 8), side=8) for label in range(4)]
    boxes = mosaic(samples, SIDE, (1.0, 1.0), np.random.default_rng(1)).target["boxes"]
    assert boxes[0, 2:].tolist() == boxes[3, :2].tolist()
    assert (boxes[:, 2:] - boxes[:, :2]).flatten().tolist() == [8.0] * 8


def test_mixup_blends_and_keeps_all_boxes() -> None:
    white = white_on_black(0, (0, 0, SIDE, SIDE))
    small = white_on_black(1, (0, 0, 32, 32), side=32)
    blend = mixup(white, small, np.random.default_rng(0))
    assert blend.image.shape == white.image.shape
    assert blend.target["labels"].tolist() == [0, 1]
    assert blend.image[0, 0, 0] == 255
    share = float(blend.image[0, -1, -1]) / 255
    assert 0.3 < share < 0.7
    assert (blend.image_id, blend.scale) == (white.image_id, white.scale)
