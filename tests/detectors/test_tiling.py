"""Detector.predict with tiles: each object of a large image is found once, where it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dfmsd.detectors.base import TILES_PER_BATCH, Detector
from dfmsd.detectors.tiling import Tiling, place_tiles
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target

Square = tuple[int, int, int, int, int]
"""Label and xyxy."""


class Squares(Detector):
    """Finds squares exactly: those of class 0 are red and of class 1 green, each with a blue of its own.

    The score is the visible share of a square of 100 x 100 pixels, so that the parts of one have low scores.
    """

    class_names = ("red", "green")
    levels = (LevelSpec("p3", 1, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[torch.Size] = []

    def features(self, images: Tensor) -> FeaturePyramid:
        raise NotImplementedError

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        raise NotImplementedError

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        self.batches.append(images.shape)
        return [self._squares((image * 255).round().int()) for image in images]

    def _squares(self, image: Tensor) -> Detections:
        boxes, labels = [], []
        for label in (0, 1):
            for blue in image[2][image[label] == 255].unique().tolist():
                y, x = torch.nonzero((image[label] == 255) & (image[2] == blue), as_tuple=True)
                boxes.append([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1])
                labels.append(label)
        found = torch.tensor(boxes).float().reshape(-1, 4)
        scores = ((found[:, 2:] - found[:, :2]).prod(dim=1) / 1e4).clamp(max=1)
        return Detections(boxes=found, scores=scores, labels=torch.tensor(labels, dtype=torch.int64))


def painted(height: int, width: int, squares: Sequence[Square]) -> Tensor:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for number, (label, left, top, right, bottom) in enumerate(squares):
        image[label, top:bottom, left:right] = 255
        image[1 - label, top:bottom, left:right] = 0
        image[2, top:bottom, left:right] = 10 + number
    return image


def found(image: Tensor, tiles: int | None, overlap: float | None = None, side: int = 128) -> list[Square]:
    prediction = Squares().predict(image, score=0.0, image_size=side, tiles=tiles, overlap=overlap)
    boxes = prediction.boxes.int().tolist()
    return sorted((label, *box) for label, box in zip(prediction.labels.tolist(), boxes, strict=True))


@pytest.mark.parametrize("side", [32, 100, 640])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (99, 333), (640, 641), (500, 1280)])
def test_tiles_cover_every_pixel_and_share_what_was_asked(side: int, overlap: float, height: int, width: int) -> None:
    tiles = place_tiles(height, width, Tiling(side, overlap))
    covered = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        assert left >= 0
        assert top >= 0
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert max(right for _, _, right, _ in tiles) == width
    assert max(bottom for *_, bottom in tiles) == height
    lefts = sorted({left for left, *_ in tiles})
    assert all(left + side - right >= int(overlap * side) for left, right in pairwise(lefts))


def test_no_more_tiles_than_needed() -> None:
    assert place_tiles(640, 640, Tiling(640, 0.2)) == [(0, 0, 640, 640)]
    assert place_tiles(100, 300, Tiling(100, 0.0)) == [(0, 0, 100, 100), (100, 0, 200, 100), (200, 0, 300, 100)]
    assert len(place_tiles(10, 132, Tiling(100, 0.999))) == 33  # a step is a pixel at least


@pytest.mark.parametrize(
    "square",
    [
        (0, 90, 40, 140, 90),  # across the right border of the first tile
        (0, 100, 100, 130, 130),  # inside the corner that four tiles share
        (1, 60, 60, 160, 160),  # across all borders around that corner
        (0, 5, 20, 250, 60),  # over two whole tiles and into the third
        (1, 0, 0, 320, 320),  # the whole image
        (0, 30, 30, 40, 40),  # in one tile alone
    ],
)
def test_an_object_is_found_once(square: Square) -> None:
    image = painted(320, 320, [square])
    assert found(image, None, side=320) == [square]
    for overlap in (0.2, 0.5):
        assert found(image, 128, overlap) == [square]


def test_an_object_is_found_once_in_tiles_that_are_nearly_the_same() -> None:
    squares = [(0, 3, 10, 40, 60), (0, 60, 10, 80, 30)]
    assert found(painted(64, 80, squares), 64, 0.95, side=64) == squares


def test_the_best_score_of_the_parts_remains_and_the_best_object_is_first() -> None:
    squares = [(0, 110, 10, 130, 30), (1, 90, 100, 140, 150)]
    image = painted(200, 256, squares)
    prediction = Squares().predict(image, score=0.0, image_size=128, tiles=128)
    assert_close(prediction.scores, torch.tensor([0.25, 0.04]))
    assert prediction.class_names == ("green", "red")
    assert prediction.image_size == (200, 256)
    assert torch.equal(prediction.image, image)


def test_objects_that_overlap_or_contain_others_stay_apart() -> None:
    squares = [
        (0, 60, 60, 160, 160),
        (0, 100, 100, 116, 116),  # inside the first, of its class
        (1, 60, 60, 64, 160),  # of another class
        (0, 100, 200, 125, 225),
        (0, 104, 204, 129, 229),  # mostly over the one before
        (1, 200, 200, 210, 210),
        (1, 210, 200, 220, 210),  # next to the one before
    ]
    image = painted(320, 320, squares)
    whole = found(image, None, side=320)
    assert len(whole) == len(squares)
    assert found(image, 128, 0.4) == whole


def test_without_overlap_an_object_across_a_border_has_two_parts() -> None:
    image = painted(100, 256, [(0, 100, 20, 150, 60), (1, 10, 10, 40, 40)])
    assert found(image, 128, 0.0) == [(0, 100, 20, 128, 60), (0, 128, 20, 150, 60), (1, 10, 10, 40, 40)]


@pytest.mark.parametrize("tiles", [None, 200, 640])
def test_an_image_that_fits_into_one_tile_gives_the_same_as_without_tiles(tiles: int | None) -> None:
    image = painted(150, 200, [(0, 20, 20, 60, 60), (1, 100, 30, 180, 120)])
    plain, tiled = (Squares().predict(image, score=0.1, image_size=96, tiles=one) for one in (None, tiles))
    for name in ("boxes", "scores", "labels", "image"):
        assert torch.equal(getattr(plain, name), getattr(tiled, name))
    assert plain.class_names == tiled.class_names


def test_tiles_are_resized_to_the_image_size_in_batches() -> None:
    detector = Squares()
    prediction = detector.predict(painted(600, 900, [(0, 8, 8, 88, 88)]), score=0.0, image_size=64, tiles=128)
    assert detector.batches == [(TILES_PER_BATCH, 3, 64, 64)] * 6 + [(54 - 48, 3, 64, 64)]
    assert_close(prediction.boxes, torch.tensor([[8.0, 8.0, 88.0, 88.0]]), atol=2, rtol=0)  # edges blur


def test_no_detection_and_several_images() -> None:
    empty, full = Squares().predict(
        [painted(300, 300, []), painted(200, 200, [(0, 90, 90, 140, 140)])], image_size=128, tiles=128, score=0.2
    )
    assert (len(empty), empty.boxes.shape, empty.class_names) == (0, (0, 4), ())
    assert full.boxes.tolist() == [[90, 90, 140, 140]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiles": 0}, "tiles must be a side in whole pixels, at least 32, got 0"),
        ({"tiles": 31}, "tiles must be a side in whole pixels, at least 32, got 31"),
        ({"tiles": 640.0}, r"tiles must be a side in whole pixels, at least 32, got 640\.0"),
        ({"tiles": True}, "tiles must be a side in whole pixels, at least 32, got True"),
        ({"tiles": 64, "overlap": 1}, "overlap must be a share of the tile from 0 to below 1, got 1"),
        ({"tiles": 64, "overlap": -0.1}, r"overlap must be a share .*, got -0\.1"),
        ({"tiles": 64, "overlap": float("nan")}, "overlap must be a share .*, got nan"),
        ({"tiles": 64, "overlap": "20%"}, "overlap must be a share .*, got '20%'"),
        ({"overlap": 0.2}, "overlap needs tiles, the side of the tiles in pixels"),
    ],
)
def test_impossible_tiles_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as error:
        Squares().predict(painted(64, 64, []), **options)
    assert "\n" not in str(error.value)
