from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from dfmsd.losses.functional import object_cells, object_masks

TWO_IMAGES = [torch.tensor([[8.0, 0.0, 16.0, 8.0], [20.0, 4.0, 23.0, 7.0]]), torch.tensor([[30.0, 10.0, 40.0, 30.0]])]


def test_cells_whose_center_lies_in_a_box_are_object_cells() -> None:
    # A padded input of 32 x 48 at stride 8: 4 x 6 cells with centers 4, 12, 20, ...
    # x: 12 is in [12, 29) and 28 as well, 4 is not; y: 4 in [0, 12), 12 is not.
    boxes = torch.tensor([[12.0, 0.0, 29.0, 12.0]])
    expected = torch.zeros(4, 6)
    expected[0, 1:4] = 1
    assert_close(object_cells([boxes], 8, (4, 6))[0, 0], expected)


def test_padding_does_not_stretch_the_boxes() -> None:
    box = [torch.tensor([[0.0, 0.0, 16.0, 16.0]])]
    unpadded, padded = object_cells(box, 8, (4, 4)), object_cells(box, 8, (4, 9))
    assert_close(padded[..., :4], unpadded)
    assert padded[..., 4:].sum() == 0


def test_overlapping_boxes_count_once() -> None:
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 8.0, 8.0]])
    assert object_cells([boxes], 8, (2, 2)).unique().tolist() == [1.0]


def test_a_box_between_centers_marks_nothing() -> None:
    assert object_cells([torch.tensor([[5.0, 5.0, 11.0, 11.0]])], 8, (4, 4)).sum() == 0


@pytest.mark.parametrize("count", [1, 3])
def test_images_without_boxes_have_no_object_cells(count: int) -> None:
    cells = object_cells([torch.zeros(0, 4)] * count, 8, (3, 5))
    assert cells.shape == (count, 1, 3, 5)
    assert cells.sum() == 0


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    stride=st.sampled_from([4, 8, 13]),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_object_cells_equal_a_loop_over_images_boxes_and_cells(
    counts: list[int], stride: int, size: tuple[int, int]
) -> None:
    boxes = [_boxes(count, stride * max(size)) for count in counts]
    expected = torch.zeros(len(counts), 1, *size)
    for n, image_boxes in enumerate(boxes):
        for x1, y1, x2, y2 in image_boxes.tolist():
            for i in range(size[0]):
                for j in range(size[1]):
                    if y1 <= (i + 0.5) * stride < y2 and x1 <= (j + 0.5) * stride < x2:
                        expected[n, 0, i, j] = 1
    assert_close(object_cells(boxes, stride, size), expected)


def test_masks_by_hand() -> None:
    boxes = [torch.tensor([[8.0, 0.0, 16.0, 8.0], [20.0, 4.0, 23.0, 7.0]])]  # cells 1..2 x 0..1, 2..3 x 0..1
    foreground, background = object_masks(boxes, 8, (3, 4))
    quarter = torch.tensor([[0.0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]) / 4
    assert_close(foreground[0, 0], quarter)
    assert_close(background[0, 0], (quarter == 0) / 6)


def test_of_overlapping_boxes_the_smaller_one_counts() -> None:
    boxes = [torch.tensor([[0.0, 0.0, 24.0, 24.0], [8.5, 8.5, 9.0, 9.0]])]
    foreground, _ = object_masks(boxes, 8, (4, 4))
    expected = torch.full((4, 4), 1 / 16)
    expected[1:3, 1:3] = 1 / 4
    assert_close(foreground[0, 0], expected)


def test_a_box_over_everything_leaves_no_background() -> None:
    foreground, background = object_masks([torch.tensor([[0.0, 0.0, 32.0, 32.0]])], 8, (4, 4))
    assert (foreground == 1 / 25).all()  # 5 x 5 cells from corner to corner, one row and column of them outside
    assert (background == 0).all()


def test_padding_of_the_input_does_not_stretch_boxes() -> None:
    small, _ = object_masks(TWO_IMAGES, 8, (4, 6))
    padded, _ = object_masks(TWO_IMAGES, 8, (7, 8))
    assert_close(padded[:, :, :4, :6], small)


def _boxes(count: int, side: int) -> Tensor:
    corners = torch.rand(count, 2, 2) * side
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)
