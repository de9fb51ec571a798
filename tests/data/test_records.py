from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_area

from dfmsd.data.records import ImageRecord, Records, box_sizes
from dfmsd.data.transforms import fitted_size


def record(number: int, objects: int, path: str = "a/ü.jpg") -> ImageRecord:
    corners = torch.rand(objects, 2, generator=torch.Generator().manual_seed(number)) * 50
    boxes, labels = torch.cat([corners, corners + 7], dim=1), torch.arange(objects) % 3
    return ImageRecord(number, Path(path), 60 + number, 90, boxes, labels, labeled=number % 2 == 0)


@pytest.fixture
def listed() -> list[ImageRecord]:
    return [
        record(3, 2),
        record(1, 0, "b.jpg"),
        record(2, 5, "/c/d e.png"),
        record(8, 1)._replace(scores=torch.tensor([0.25])),
    ]


def same(first: ImageRecord, second: ImageRecord) -> bool:
    values = zip(first, second, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in values)


def all_same(first: list[ImageRecord], second: Records) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def test_records_are_those_of_the_list(listed: list[ImageRecord]) -> None:
    records = Records.of(listed)
    assert all_same(listed, records)
    assert same(records[-1], listed[-1])
    with pytest.raises(IndexError):
        records[4]


@pytest.mark.parametrize("part", [slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(9, None)])
def test_parts_are_those_of_the_list(listed: list[ImageRecord], part: slice) -> None:
    assert all_same(listed[part], Records.of(listed)[part])


def test_records_can_be_chosen_repeated_and_joined(listed: list[ImageRecord]) -> None:
    records = Records.of(listed)
    assert all_same([listed[2], listed[0], listed[2]], records.take(np.array([2, 0, 2])))
    assert all_same([*listed, listed[1]], records + Records.of([listed[1]]))
    assert all_same(listed, Records.of([]) + records)


def test_labels_are_replaced(listed: list[ImageRecord]) -> None:
    changed = Records.of(listed).relabeled(np.array([5, 4, 3]))
    assert changed[2].labels.tolist() == [5, 4, 3, 5, 4]


def test_a_record_is_a_copy(listed: list[ImageRecord]) -> None:
    records = Records.of(listed)
    records[0].boxes.zero_()
    assert same(records[0], record(3, 2))


def test_box_sizes_are_those_of_each_image(listed: list[ImageRecord]) -> None:
    expected = []
    for one in listed:
        height, width = fitted_size(one.height, one.width, 64)
        expected += (box_area(one.boxes) * height * width / (one.height * one.width)).sqrt().tolist()
    assert box_sizes(Records.of(listed), 64).tolist() == pytest.approx(expected, rel=1e-6)
