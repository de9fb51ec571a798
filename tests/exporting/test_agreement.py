"""Agreement of two detectors, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from dfmsd.exporting.agreement import agreement
from dfmsd.types import Detections


def detections(*boxes: Sequence[float], score: float = 0.9) -> Detections:
    return Detections(
        boxes=torch.tensor(boxes).view(-1, 4),
        scores=torch.full((len(boxes),), score),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
    )


def test_agreement_is_the_ap_with_the_detections_as_objects() -> None:
    near, far = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)
    assert agreement([detections(near, far)], [detections(near, far)]) == pytest.approx(1)
    assert agreement([detections(near, far)], [detections(near)]) == pytest.approx(51 / 101)  # of 101 recalls 0..0.5
    moved = (0.0, 0.0, 10.0, 7.2)  # IoU 0.72: correct at 0.5 to 0.7, five of ten thresholds
    assert agreement([detections(near)], [detections(moved)]) == pytest.approx(0.5)
    assert agreement([detections(near)], [detections()]) == 0


def test_weak_detections_need_not_be_found() -> None:
    strong, weak = detections((0.0, 0.0, 10.0, 10.0)), detections((50.0, 50.0, 60.0, 60.0), score=0.2)
    both = Detections(**{key: torch.cat([strong[key], weak[key]]) for key in strong})
    assert agreement([both], [strong]) == pytest.approx(1)
    assert agreement([weak], [strong]) == 0  # there is no other
    assert agreement([weak], [weak]) == pytest.approx(1)
