"""Reading one pyramid from another on objects."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dfmsd.losses.align import LevelPair
from dfmsd.ranking.readout import Readout, read_out
from dfmsd.types import Batch, FeaturePyramid, LevelSpec

PAIRS = [
    LevelPair(LevelSpec("s8", 4, 8), LevelSpec("t8", 6, 8)),
    LevelPair(LevelSpec("s8", 4, 8), LevelSpec("t4", 6, 4)),
]
BOX = torch.tensor([[0.0, 0.0, 64.0, 32.0]])


def batch_of(images: Tensor, boxes: Tensor) -> Batch:
    targets = [{"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long)}] * len(images)
    return Batch(images, targets, [(64, 64)] * len(images), [(1.0, 1.0)] * len(images), list(range(len(images))))  # type: ignore[arg-type]


def student(images: Tensor) -> FeaturePyramid:
    """Features as the first channels of the images, which stand for feature maps of stride 8 here."""
    return {"s8": images[:, :4]}


def linear(images: Tensor) -> FeaturePyramid:
    """A linear function of the student's features; on the finer level the same, enlarged."""
    weights = torch.eye(6, 4) + torch.linspace(-1, 1, 24).view(6, 4)
    level = torch.einsum("oc,nchw->nohw", weights, images[:, :4])
    return {"t8": level, "t4": interpolate(level, scale_factor=2, mode="nearest")}


def noise(images: Tensor) -> FeaturePyramid:
    level = images[:, 4:10]
    return {"t8": level, "t4": interpolate(level, scale_factor=2, mode="nearest")}


def read(teacher: object, *batches: Batch) -> Readout:
    return read_out(PAIRS, batches, student, teacher)  # type: ignore[arg-type]


def maps(images: int = 10) -> Tensor:
    return torch.randn(images, 10, 8, 8)


def test_a_linear_function_of_the_student_is_read_and_noise_is_not() -> None:
    batches = [batch_of(maps(), BOX) for _ in range(3)]
    of_linear, of_noise = read(linear, *batches), read(noise, *batches)
    assert of_linear.teacher == pytest.approx(1, abs=1e-3)
    assert of_linear.student == pytest.approx(1, abs=0.05)
    assert of_noise.teacher == pytest.approx(0, abs=0.05)
    assert of_noise.student == pytest.approx(0, abs=0.05)


def test_only_cells_in_boxes_count() -> None:
    images = maps(20)

    def linear_in_the_box(images: Tensor) -> FeaturePyramid:
        inside, outside = linear(images), noise(images)
        return {
            name: torch.cat([inside[name].chunk(2, dim=2)[0], outside[name].chunk(2, dim=2)[1]], dim=2)
            for name in inside
        }

    assert read(linear_in_the_box, batch_of(images, BOX)).teacher == pytest.approx(1, abs=0.01)
    below = torch.tensor([[0.0, 32.0, 64.0, 64.0]])
    assert read(linear_in_the_box, batch_of(images, below)).teacher == pytest.approx(0, abs=0.1)


def test_the_split_does_not_depend_on_the_batches() -> None:
    images = maps(12)
    whole = read(noise, batch_of(images, BOX))
    parts = read(noise, *(batch_of(part, BOX) for part in images.split(5)))
    assert parts == pytest.approx(whole)


@pytest.mark.parametrize(("images", "boxes"), [(1, BOX), (4, torch.zeros(0, 4))])
def test_without_two_images_with_objects_there_is_no_answer(images: int, boxes: Tensor) -> None:
    assert read(linear, batch_of(maps(images), boxes)) == (None, None)
