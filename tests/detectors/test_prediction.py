"""Detector.predict: images of any type in, boxes in the original image's pixels out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from dfmsd.detectors.base import Detector
from dfmsd.detectors.prediction import to_prediction
from dfmsd.errors import DfmsdError
from dfmsd.evaluation import predict as module
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target

WIDE = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
"""Height 48 and width 96, to be resized to 32 x 64, 64 x 128, ..."""


class BrightBox(Detector):
    """Finds the bounding box of all pixels brighter than half, and a faint second box of the whole frame."""

    class_names = ("dark", "bright")
    levels = (LevelSpec("p3", 1, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.BatchNorm2d(3)
        self.seen: list[tuple[torch.Size, Sequence[tuple[int, int]], bool, bool]] = []

    def features(self, images: Tensor) -> FeaturePyramid:
        raise NotImplementedError

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        raise NotImplementedError

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        self.seen.append((images.shape, sizes, self.layer.training, torch.is_grad_enabled()))
        y, x = torch.nonzero(images[0].mean(dim=0) > 0.5, as_tuple=True)
        box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
        frame = torch.tensor([-10.0, -10.0, 1000.0, 1000.0])
        return [
            {"boxes": torch.stack([box, frame]), "scores": torch.tensor([0.9, 0.2]), "labels": torch.tensor([1, 0])}
        ]


def test_boxes_without_area_inside_the_image_are_dropped() -> None:
    """Objects beyond the lower edge of a wide image are clipped to it."""
    boxes = torch.tensor([[0.0, 1.0, 8.0, 3.0], [0.0, 4.0, 8.0, 9.0], [70.0, 0.0, 80.0, 2.0]])
    found = Detections(boxes=boxes, scores=torch.tensor([0.9, 0.8, 0.7]), labels=torch.tensor([1, 0, 0]))
    prediction = to_prediction(found, torch.zeros(3, 8, 128, dtype=torch.uint8), (0.5, 0.5), ("a", "b"), 0.1)
    assert prediction.boxes.tolist() == [[0.0, 2.0, 16.0, 6.0]]
    assert (prediction.class_names, prediction.labels.tolist(), len(prediction.scores)) == (("b",), [1], 1)


def bright_rectangle(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """Draw a white rectangle on black."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    return image


@pytest.mark.parametrize("image_size", [64, 128, 256, 512])
def test_boxes_are_in_pixels_of_the_original_image(image_size: int) -> None:
    """A rectangle of an image of 256 x 128 pixels is found where it is, whether the image shrinks or grows."""
    prediction = BrightBox().predict(bright_rectangle(256, 128, (32, 16, 192, 80)), image_size=image_size)
    assert prediction.image_size == (128, 256)
    assert_close(prediction.boxes, torch.tensor([[32.0, 16.0, 192.0, 80.0]]))
    assert prediction.class_names == ("bright",)
    assert prediction.labels.tolist() == [1]
    assert_close(prediction.scores, torch.tensor([0.9]))
    assert len(prediction) == 1


def test_boxes_are_clipped_to_the_original_image() -> None:
    prediction = BrightBox().predict(bright_rectangle(100, 37, (0, 0, 100, 37)), score=0.1, image_size=64)
    assert prediction.class_names == ("bright", "dark")
    assert_close(prediction.boxes[1], torch.tensor([0.0, 0.0, 100.0, 37.0]))
    assert prediction.boxes.dtype == prediction.scores.dtype == torch.float32
    assert prediction.labels.dtype == torch.int64


def test_the_detector_runs_in_eval_mode_without_gradients_and_keeps_its_mode() -> None:
    detector = BrightBox()
    detector.layer.eval()
    assert detector.training
    detector.predict(WIDE, image_size=64)
    assert detector.seen == [(torch.Size((1, 3, 64, 64)), [(32, 64)], False, False)]
    assert detector.training
    assert not detector.layer.training


def test_images_are_resized_to_the_size_of_the_training() -> None:
    detector = BrightBox()
    detector.predict(WIDE)
    detector.image_size = 96
    detector.predict(WIDE)
    detector.predict(WIDE, image_size=32)
    assert [shape[-1] for shape, *_ in detector.seen] == [256, 96, 32]


def test_every_type_of_image_gives_the_same_prediction(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(WIDE).save(path)
    tensor = torch.from_numpy(WIDE).permute(2, 0, 1)
    flipped_twice = WIDE[:, ::-1].copy()[:, ::-1]  # negative strides, as of BGR images turned to RGB
    images: list[Any] = [path, str(path), Image.fromarray(WIDE), WIDE, flipped_twice, tensor, tensor.float() / 255]
    detector = BrightBox()
    first, *others = detector.predict(images, image_size=64)
    assert_close(first.image, tensor)
    for other in others:
        assert_close(other.boxes, first.boxes)
        assert_close(other.image, first.image)
    assert_close(detector.predict(path, image_size=64).boxes, first.boxes)
    assert detector.predict([]) == []


def test_arrays_are_not_shared_with_the_caller() -> None:
    array = WIDE.copy()
    array.flags.writeable = False
    prediction = BrightBox().predict(array, image_size=64)
    prediction.image.zero_()
    assert array.any()


def test_pil_images_of_other_modes_are_converted() -> None:
    image = bright_rectangle(64, 64, (8, 8, 24, 24))
    for mode in ("L", "RGBA", "P"):
        assert BrightBox().predict(image.convert(mode), image_size=64).boxes.tolist() == [[8, 8, 24, 24]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (WIDE[:, :, 0], "an array must be H x W x 3, RGB, got 48 x 96; convert it"),
        (np.zeros((8, 8, 4), np.uint8), "an array must be H x W x 3, RGB, got 8 x 8 x 4"),
        (np.zeros((1, 8, 8, 3), np.uint8), "an array must be H x W x 3, RGB, got 1 x 8 x 8 x 3"),
        (WIDE / 255, "an array must be uint8 with pixels in 0..255, got float64"),
        (np.zeros((0, 8, 3), np.uint8), "image has no pixels: 0 x 8"),
        (torch.zeros(8, 8, 3), "a tensor must be 3 x H x W, RGB, got 8 x 8 x 3"),
        (torch.zeros(1, 3, 8, 8), "a tensor must be 3 x H x W, RGB, got 1 x 3 x 8 x 8; pass several images as a list"),
        (torch.full((3, 8, 8), 128.0), r"a floating-point tensor must have pixels in \[0, 1\], got 128..128"),
        (torch.full((3, 8, 8), torch.nan), r"must have pixels in \[0, 1\], got nan..nan"),
        (
            torch.zeros(3, 8, 8, dtype=torch.int64),
            r"a tensor must be uint8, or floating point in \[0, 1\], got torch.int",
        ),
        (Image.new("F", (8, 8)), "image: floating-point pixels have no known range"),
        ("missing.png", r"missing\.png: cannot be decoded as an image"),
        ("https://a.org/b.jpg", r"https://a\.org/b\.jpg: a URL, which is not read; download"),
        (7, "image must be a path, a PIL image, a NumPy array or a tensor, got int"),
    ],
)
def test_other_images_are_refused_in_one_line(image: Any, message: str) -> None:
    detector = BrightBox()
    for images in (image, [image]):
        with pytest.raises(DfmsdError, match=message) as error:
            detector.predict(images)
        assert "\n" not in str(error.value)
    assert not detector.seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": 1.5}, r"score must be a number in 0..1, got 1\.5"),
        ({"score": float("nan")}, "score must be a number in 0..1, got nan"),
        ({"image_size": 100}, "image_size must be a multiple of 32"),
        ({"image_size": 0}, "image_size must be a multiple of 32"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        BrightBox().predict(WIDE, **options)


def test_supervision_gets_the_same_detections() -> None:
    pytest.importorskip("supervision")
    prediction = BrightBox().predict(bright_rectangle(256, 128, (32, 16, 192, 80)), score=0.1, image_size=128)
    converted = prediction.to_supervision()
    assert converted.xyxy.tolist() == prediction.boxes.tolist()
    assert converted.confidence.tolist() == prediction.scores.tolist()
    assert converted.class_id.tolist() == [1, 0]
    assert converted["class_name"].tolist() == ["bright", "dark"]
    empty = BrightBox().predict(bright_rectangle(64, 64, (0, 0, 64, 64)), score=1.0, image_size=64)
    assert len(empty) == len(empty.to_supervision()) == 0
    assert np.array_equal(empty.plot(), np.full((64, 64, 3), 255))


def test_a_plot_shows_the_boxes_and_leaves_the_image_alone() -> None:
    pytest.importorskip("supervision")
    image = bright_rectangle(256, 128, (32, 16, 192, 80))
    prediction = BrightBox().predict(image, image_size=128)
    drawn = np.asarray(prediction.plot())
    changed = (drawn != np.asarray(image)).any(axis=2)
    assert drawn.shape == (128, 256, 3)
    assert changed[20:78, 32].all()
    assert not changed[90:, 200:].any()
    assert_close(prediction.image, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_a_missing_supervision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = BrightBox().predict(bright_rectangle(64, 64, (8, 8, 24, 24)), image_size=64)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DfmsdError, match=r"Prediction.to_supervision needs supervision .*dfmsd\[predict\]"):
        prediction.to_supervision()
    with pytest.raises(DfmsdError, match=r"needs supervision .*pip install 'dfmsd\[predict\]'"):
        prediction.plot()


def test_the_command_writes_the_same_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("supervision")
    file = tmp_path / "wide.png"
    Image.fromarray(WIDE).save(file)
    detector = BrightBox()
    monkeypatch.setattr(module, "load_detector", lambda _: detector)
    module.predict("any", [file], tmp_path / "out", score=0.1, image_size=64)
    prediction = detector.cpu().predict(file, score=0.1, image_size=64)
    annotations = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in annotations)]
    assert_close(torch.tensor(corners), prediction.boxes)
    assert [one["score"] for one in annotations] == prediction.scores.tolist()
    assert [one["category_id"] - 1 for one in annotations] == prediction.labels.tolist()
    assert np.array_equal(Image.open(tmp_path / "out" / "wide.png"), prediction.plot())
