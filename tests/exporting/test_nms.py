from __future__ import annotations

import pytest
import torch
from torchvision.ops import nms

from dfmsd.exporting.nms import gather_rows, nms_scores


def crowd(images: int, count: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return heavily overlapping boxes within 64 pixels."""
    corners = torch.rand(images, count, 2) * 40
    boxes = torch.cat([corners, corners + 4 + torch.rand(images, count, 2) * 20], dim=2)
    return boxes, torch.rand(images, count), torch.randint(groups, (images, count))


@pytest.mark.parametrize("groups", [1, 2, 7])
def test_groups_and_images_are_independent(groups: int) -> None:
    boxes, scores, labels = crowd(3, 60, groups)
    scores[:, ::5] = 0
    found = nms_scores(boxes, scores, labels, 0.3, groups, 64.0)
    expected = torch.zeros_like(scores)
    for image in range(3):
        for group in range(groups):
            (index,) = torch.where((labels[image] == group) & (scores[image] > 0))
            kept = index[nms(boxes[image, index], scores[image, index], 0.3)]
            expected[image, kept] = scores[image, kept]
    assert 0 < int((expected > 0).sum()) < int((scores > 0).sum())
    assert torch.equal(found, expected)


def test_adjacent_tiles_do_not_overlap() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 64.0, 64.0]] * 4])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    assert torch.equal(nms_scores(boxes, scores, torch.arange(4).unsqueeze(0), 0.0, 4, 64.0), scores)


def test_no_boxes() -> None:
    boxes, scores, labels = crowd(2, 5, 3)
    assert torch.equal(nms_scores(boxes, scores * 0, labels, 0.5, 3, 64.0), torch.zeros(2, 5))


def test_gather_rows() -> None:
    values = torch.arange(12.0).view(2, 3, 2)
    assert gather_rows(values, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
