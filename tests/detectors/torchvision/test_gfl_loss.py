"""Assignment and losses of GFL against literal implementations of their rules."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from tests.helpers.literal import TOLERANCE, both
from torch import Tensor
from torch.testing import assert_close

from dfmsd.detectors.torchvision.gfl_loss import (
    assign,
    distribution_focal_loss,
    pad_objects,
    quality_focal_loss,
    valuable_region,
)

COUNTS = [64, 16, 4]


def grid(side: int = 64, scale: float = 4.0) -> Tensor:
    """Square anchors of 8 to 32 pixels' stride on an image of ``side``, centered on the corners of the cells."""
    levels = []
    for stride in (8, 16, 32):
        y, x = torch.meshgrid(*[torch.arange(0.0, side, stride)] * 2, indexing="ij")
        centers = torch.stack([x, y], dim=-1).reshape(-1, 2)
        levels.append(torch.cat([centers - scale * stride / 2, centers + scale * stride / 2], dim=1))
    return torch.cat(levels).double()


def objects(count: int) -> Tensor:
    corner = 40 * torch.rand(count, 2, dtype=torch.float64)
    return torch.cat([corner, corner + 6 + 40 * torch.rand(count, 2, dtype=torch.float64)], dim=1)


def iou(a: list[float], b: list[float]) -> float:
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    common = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def middle(box: list[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def slow_threshold(anchors: list[list[float]], box: list[float]) -> tuple[list[int], float]:
    """Candidates of an object, and mean + unbiased deviation of their overlaps."""
    candidates: list[int] = []
    start = 0
    for count in COUNTS:
        indices = range(start, start + count)
        candidates += sorted(indices, key=lambda i: math.dist(middle(anchors[i]), middle(box)))[:9]
        start += count
    values = [iou(anchors[i], box) for i in candidates]
    mean = sum(values) / len(values)
    return candidates, mean + math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def slow_assignment(anchors: list[list[float]], boxes: list[list[float]]) -> list[int]:
    matched, best = [-1] * len(anchors), [-1.0] * len(anchors)
    for index, box in enumerate(boxes):
        candidates, threshold = slow_threshold(anchors, box)
        for i in candidates:
            (x, y), value = middle(anchors[i]), iou(anchors[i], box)
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and inside and value > best[i]:
                matched[i], best[i] = index, value
    return matched


def slow_region(anchors: list[list[float]], boxes: list[list[float]]) -> list[float]:
    near = [0.0] * len(anchors)
    for box in boxes:
        _, threshold = slow_threshold(anchors, box)
        for i, anchor in enumerate(anchors):
            low = [min(anchor[k], box[k]) for k in (0, 1)]
            high = [max(anchor[k], box[k]) for k in (2, 3)]
            measure = iou(anchor, box) - (math.dist(middle(anchor), middle(box)) / math.dist(low, high)) ** 2
            if 0.25 * threshold <= measure < threshold:
                near[i] = max(near[i], iou(anchor, box))
    return near


def test_assignment_and_region_equal_the_literal_rules() -> None:
    anchors = grid()
    images = [objects(count) for count in (1, 0, 6, 12)]
    boxes, _ = pad_objects(images, [torch.zeros(len(image), dtype=torch.long) for image in images])
    found = assign(anchors, COUNTS, boxes)
    wanted = [slow_assignment(anchors.tolist(), image.tolist()) for image in images]
    assert found.matched.tolist() == wanted
    assert [sum(index >= 0 for index in image) > 0 for image in wanted] == [True, False, True, True]
    near = valuable_region(anchors, boxes, found.threshold)
    assert_close(near, torch.tensor([slow_region(anchors.tolist(), image.tolist()) for image in images]).double())
    assert (near > 0).sum() > (found.matched >= 0).sum()


def test_an_assignment_by_hand() -> None:
    """Two levels of one and two anchors: overlaps 1/4, 1 and 0, so that mean + deviation is 5/12 + 0.520."""
    anchors = torch.tensor([[0.0, 0, 16, 16], [4, 4, 12, 12], [104, 4, 112, 12]])
    found = assign(anchors, [1, 2], torch.tensor([[[4.0, 4, 12, 12]]]))
    assert_close(found.threshold, torch.tensor([[5 / 12 + math.sqrt(13 / 48)]]))
    assert found.matched.tolist() == [[-1, 0, -1]]


def test_anchors_with_a_center_outside_the_object_are_background() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8], [100, 100, 108, 108], [200, 200, 208, 208]])
    box = torch.tensor([[[4.0, 4.0, 8.0, 8.0]]])  # the center (4, 4) of the only anchor that overlaps is its corner
    assert assign(anchors, [1, 2], box).matched.tolist() == [[-1, -1, -1]]
    assert assign(anchors, [1, 2], box - 0.1).matched.tolist() == [[0, -1, -1]]


def test_an_anchor_of_two_objects_gets_the_one_it_overlaps_most() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8], [100, 100, 108, 108], [200, 200, 208, 208]])
    boxes = torch.tensor([[[0.0, 0, 8, 6], [0, 0, 8, 7], [0, 0, 8, 5]]])
    assert assign(anchors, [1, 2], boxes).matched.tolist() == [[1, -1, -1]]


def test_objects_are_padded_with_boxes_without_area() -> None:
    boxes, labels = pad_objects([torch.ones(2, 4), torch.ones(0, 4)], [torch.tensor([3, 1]), torch.zeros(0).long()])
    assert boxes.tolist() == [[[1.0] * 4] * 2, [[0.0] * 4] * 2]
    assert labels.tolist() == [[3, 1], [0, 0]]
    boxes, labels = pad_objects([torch.ones(0, 4)] * 2, [torch.zeros(0).long()] * 2)
    assert boxes.tolist() == [[[0.0] * 4]] * 2
    assert labels.tolist() == [[0]] * 2


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_quality_focal_loss_equals_the_literal_formula(dtype: torch.dtype) -> None:
    source = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    quality = torch.rand(5, 3, dtype=torch.float64) * (torch.rand(5, 3) > 0.5)
    slow = torch.zeros((), dtype=torch.float64)
    for row, column in product(range(5), range(3)):
        p, y = 1 / (1 + (-source[row, column]).exp()), quality[row, column]
        slow = slow - (y - p).abs() ** 2 * ((1 - y) * (1 - p).log() + y * p.log())
    both(quality_focal_loss(source.to(dtype), quality.to(dtype)), slow, source, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_distribution_focal_loss_equals_the_literal_formula(dtype: torch.dtype) -> None:
    source = torch.randn(6, 17, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.0, 0.25, 3.0, 7.5, 15.0, 15.9], dtype=torch.float64)
    weight = torch.rand(6, dtype=torch.float64)
    slow = torch.zeros((), dtype=torch.float64)
    for row, y in enumerate(target.tolist()):
        p, lower = source[row].exp() / source[row].exp().sum(), math.floor(y)
        slow = slow - weight[row] * ((lower + 1 - y) * p[lower].log() + (y - lower) * p[lower + 1].log())
    fast = (distribution_focal_loss(source.to(dtype), target.to(dtype)) * weight.to(dtype)).sum()
    both(fast, slow, source, dtype)


def test_the_best_distribution_is_on_the_two_bins_around_the_target() -> None:
    target = torch.tensor([3.25])
    best = torch.full((1, 17), -30.0)
    best[0, 3:5] = torch.tensor([0.75, 0.25]).log()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert_close(distribution_focal_loss(best, target), torch.tensor([entropy]))
    assert (distribution_focal_loss(best + 0.1 * torch.randn(50, 17), target.expand(50)) >= entropy - 1e-6).all()
