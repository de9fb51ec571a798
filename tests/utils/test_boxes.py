from __future__ import annotations

import torch
from torch.testing import assert_close

from dfmsd.utils.boxes import elementwise_iou


def test_iou_and_giou_by_hand() -> None:
    first = torch.tensor([[0.0, 0, 4, 4], [0, 0, 1, 1], [0, 0, 2, 2], [1, 1, 1, 1]])
    second = torch.tensor([[2.0, 0, 6, 4], [3, 0, 4, 1], [0, 0, 2, 2], [1, 1, 1, 1]])
    overlap = elementwise_iou(first, second)
    assert_close(overlap.iou, torch.tensor([8 / 24, 0, 1, 0]))
    assert_close(overlap.giou, torch.tensor([8 / 24, -2 / 4, 1, 0]))
