from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.starting.conftest import MakeFacts

from dfmsd.starting import numbers
from dfmsd.starting.facts import TeacherFacts

MakeTeacher = Callable[..., TeacherFacts]


@pytest.mark.parametrize(
    ("values", "size", "reason"),
    [
        ({"sizes": torch.full((10,), 0.03)}, 288, "100% of the objects cover a cell"),  # 8 / 0.03 = 267
        ({"sizes": torch.full((10,), 0.5)}, 192, "100%"),
        ({"sizes": torch.full((10,), 0.5), "side": 128}, 128, "100%"),
        ({"sizes": torch.full((10,), 0.01)}, 320, "0% .*, and the images are no larger"),
        ({"sizes": torch.full((10,), 0.01), "side": 4000}, 512, "0% .*, and 800 would take longer"),
        ({"sizes": torch.full((10,), 0.01), "side": 4000, "gpu": True}, 800, "100%"),
        ({"sizes": torch.tensor([0.001, *[0.03] * 19])}, 288, "95%"),
    ],
)
def test_small_objects_cover_a_cell(facts: MakeFacts, values: dict[str, Any], size: int, reason: str) -> None:
    choice = numbers.choose_image_size(facts(**values))
    assert choice.value == size
    assert re.search(reason, choice.why)


def test_the_teachers_own_size_goes_first(facts: MakeFacts, teacher: MakeTeacher) -> None:
    assert numbers.choose_image_size(facts(teacher=teacher(image_size=256))).value == 256
    large = facts(teacher=teacher(image_size=1024), sizes=torch.full((10,), 0.5))
    assert numbers.choose_image_size(large).value == 192


def test_there_are_no_more_images_in_a_batch_than_in_the_data(facts: MakeFacts) -> None:
    assert numbers.choose_batch_size(facts()).value == 8
    assert numbers.choose_batch_size(facts(gpu=True)).value == 16
    assert numbers.choose_batch_size(facts(train_images=5)).value == 5


@pytest.mark.parametrize(
    ("images", "epochs", "steps"),
    [(448, 54, 3_024), (4_000, 12, 6_000), (118_000, 1, 14_750), (8, 300, 300), (3, 300, 300)],
)
def test_epochs_take_a_sensible_number_of_steps(images: int, epochs: int, steps: int) -> None:
    choice = numbers.choose_epochs(images, 8)
    assert choice.value == epochs
    assert f"{steps:,} in all" in choice.why


def test_there_are_about_ten_evaluations() -> None:
    assert [numbers.choose_eval_every(epochs) for epochs in (1, 9, 10, 54, 300)] == [1, 1, 1, 5, 30]


def test_images_are_cached_if_they_fit(facts: MakeFacts) -> None:
    assert numbers.choose_image_cache(facts(), 256).value == "ram"
    assert numbers.choose_image_cache(facts(train_images=100_000), 256).value == "off"


def test_features_are_cached_on_a_cpu_if_they_fit(facts: MakeFacts, teacher: MakeTeacher) -> None:
    levels = teacher().levels
    fits = numbers.choose_teacher_cache(facts(), levels, 256, 2)
    assert fits.value == "ram"
    assert "at most 0.15 GiB" in fits.why  # 448 x 2 x 1364 cells x 64 channels x 2 bytes
    assert numbers.choose_teacher_cache(facts(gpu=True), levels, 256, 2).value is None
    assert numbers.choose_teacher_cache(facts(train_images=100_000), levels, 256, 2).value is None
    tight = numbers.choose_teacher_cache(facts(memory=2**28), levels, 256, 2)
    assert tight.value is None
    assert "may take 0.15 GiB, more than the 0.06 to spare" in tight.why
    assert numbers.choose_teacher_cache(facts(memory=None), levels, 256, 2).value == "ram"
