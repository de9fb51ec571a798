from __future__ import annotations

import pytest
import torch
from tests.helpers.finder import Finder

from dfmsd.evaluation.evaluate import detect
from dfmsd.evaluation.flipping import detect_both_ways, fuse
from dfmsd.types import Batch, Detections


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    values = torch.tensor(rows).reshape(-1, 6)
    return {"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}


def test_fused_boxes_are_means_weighted_by_scores() -> None:
    fused = fuse(found((0, 0, 10, 10, 0.9, 0)), found((0, 0, 12, 10, 0.3, 0)))
    assert fused["boxes"].tolist() == [pytest.approx([0, 0, 10.5, 10])]
    assert fused["scores"].tolist() == [pytest.approx(0.6)]


def test_what_one_view_misses_has_half_of_its_score() -> None:
    fused = fuse(found((0, 0, 10, 10, 0.8, 0)), found((20, 0, 30, 10, 0.9, 0), (0, 0, 10, 10, 0.7, 1)))
    assert fused["labels"].tolist() == [0, 0, 1]
    assert fused["scores"].tolist() == pytest.approx([0.45, 0.4, 0.35])


def test_a_view_counts_once() -> None:
    fused = fuse(found((0, 0, 10, 10, 0.8, 0), (0, 0, 10, 9, 0.6, 0)), found())
    assert fused["scores"].tolist() == pytest.approx([0.4])


def test_nothing_found_is_nothing_fused() -> None:
    assert len(fuse(found(), found())["boxes"]) == 0


def test_boxes_of_the_mirror_image_are_mirrored_back_within_the_content() -> None:
    images = torch.full((2, 3, 64, 96), 0.5)
    images[:, :, :, 80:] = 0  # padding
    images[0, :, 8:24, 4:20] = torch.tensor([1.0, 0, 0])[:, None, None]
    images[1, :, 8:24, 60:76] = torch.tensor([1.0, 0, 0])[:, None, None]
    batch = Batch(images, [], [(64, 80)] * 2, [(1.0, 1.0)] * 2, [1, 2])
    detector = Finder(scores=(0.9, 0.5))
    assert [one["scores"].tolist() for one in detect(detector, batch)] == [pytest.approx([0.9]), pytest.approx([0.5])]
    left, right = detect_both_ways(detector, batch)
    for one, box in ((left, [4, 8, 20, 24]), (right, [60, 8, 76, 24])):
        assert one["boxes"].tolist() == [pytest.approx(box)]
        assert one["scores"].tolist() == [pytest.approx(0.7)]
