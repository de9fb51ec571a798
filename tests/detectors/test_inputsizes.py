"""Sizes of images that a detector can take, asked before and during a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.one_box import CLASSES, OneBox, decode, loss

from dfmsd.detectors import ModuleDetector
from dfmsd.detectors.inputsizes import InputSizes, longer_side
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import distill
from dfmsd.errors import DfmsdError

Make = Callable[..., DistillConfig]
PATCHES = InputSizes(step=56, square=True)
"""Patches of 14 pixels in 4 x 4 windows."""


def images(height: int, width: int) -> torch.Tensor:
    return torch.zeros(1, 3, height, width)


@pytest.mark.parametrize(
    ("sizes", "height", "width", "message"),
    [
        (InputSizes(), 64, 50, "images of 64 x 50 pixels: pad both sides to multiples of 32"),
        (PATCHES, 64, 64, "images of 64 x 64 pixels: pad both sides to multiples of 56"),
        (PATCHES, 112, 56, "images of 112 x 56 pixels: this model takes squares only"),
        (InputSizes(area=14630), 96, 128, "96 x 128 pixels are too small for this model: .* at least 128 a side"),
    ],
)
def test_images_that_a_model_cannot_take_are_refused(sizes: InputSizes, height: int, width: int, message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        sizes.check(images(height, width))


def test_images_that_it_can_take_pass() -> None:
    InputSizes().check(images(64, 96))
    PATCHES.check(images(112, 112))
    InputSizes(area=64 * 96).check(images(64, 96))


def test_the_next_fitting_side_suits_the_data_module_too() -> None:
    assert InputSizes().fitting(256) == 256
    assert PATCHES.fitting(225) == 448  # a multiple of 56 and of 32
    assert InputSizes(area=128 * 128).fitting(1) == 128
    assert InputSizes(area=128 * 128 + 1).fitting(1) == 160


def test_the_nearest_side_may_be_smaller() -> None:
    assert [InputSizes().nearest(side) for side in (300, 427.0, 640, 1066.7, 1e9)] == [288, 416, 640, 1056, 16384]
    assert PATCHES.nearest(560) == 672
    assert InputSizes(area=128 * 128).nearest(96) == 128


def test_a_limit_on_the_longer_side_counts_for_usual_images() -> None:
    assert longer_side(600, None) == longer_side(600, 1333) == 800
    assert longer_side(600, 700) == 700


def test_a_setting_is_refused_with_sizes_that_fit() -> None:
    PATCHES.check_side(448, "data.image_size")
    with pytest.raises(
        DfmsdError, match=r"^data\.image_size: teacher x cannot take .* 256 .* one of 224, 448, 672, \.\.\.$"
    ):
        PATCHES.check_side(256, "data.image_size", "teacher x")


def test_batches_of_other_shapes_are_refused_before_they_are_made() -> None:
    InputSizes().check_batches(256, "batch", "the student")
    InputSizes(step=16).check_batches(256, "batch", "the student")
    for sizes, wanted in (
        (InputSizes(square=True), "squares"),
        (InputSizes(step=64), "sides that are multiples of 64"),
    ):
        with pytest.raises(DfmsdError, match=rf"data\.pad: the student takes {wanted} only, .* set data\.pad: square"):
            sizes.check_batches(256, "batch", "the student")
        sizes.check_batches(256, "square", "the student")


def custom(sizes: InputSizes) -> ModuleDetector:
    detector = ModuleDetector(
        OneBox(), ("body.2", "body.3"), CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3, loss=loss, decode=decode
    )
    detector.input_sizes = sizes
    return detector


def test_a_run_that_does_not_fit_its_detectors_is_refused_before_it_starts(
    distill_config: Make, tmp_path: Path
) -> None:
    config = distill_config(tmp_path / "run", stages=[StageConfig(epochs=1, teacher="x")])
    with pytest.raises(
        DfmsdError, match=r"data\.image_size or teacher_size: teacher x cannot take .* of 64 .* one of 224, 448"
    ):
        distill(config, teachers={"x": custom(PATCHES)})
    with pytest.raises(DfmsdError, match=r"^teacher_size: teacher x cannot take .* of 256 .* one of 224, 448"):
        distill(replace(config, teacher_size=256), teachers={"x": custom(PATCHES)})
    with pytest.raises(DfmsdError, match=r"data\.image_size: the student cannot take .* of 64 .* one of 224, 448"):
        distill(config, student=custom(PATCHES), no_distill=True)
    assert not (tmp_path / "run").exists()


def test_a_size_for_prediction_is_refused_and_an_unknown_one_is_assumed_to_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    detector = custom(PATCHES)
    with pytest.raises(DfmsdError, match=r"image_size: this model cannot take .* 256 .* 224, 448, 672"):
        detector.predict(torch.zeros(3, 64, 64), image_size=256)
    assert detector.choose_size() == 448
    assert "assuming 448 pixels" in caplog.text
