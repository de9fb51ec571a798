from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torchvision.ops import nms

from dfmsd.errors import DfmsdError
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.verify import Difference, ExportedDetector, compare_detections, compare_detectors
from dfmsd.types import Detections

BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [50.0, 50.0, 90.0, 90.0]


def detections(*found: tuple[Sequence[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*found, strict=True) if found else ((), (), ())
    return Detections(
        boxes=torch.tensor(boxes).view(-1, 4), scores=torch.tensor(scores), labels=torch.tensor(labels).long()
    )


def difference(expected: Detections, found: Detections, limit: int = 100) -> Difference:
    return compare_detections(expected, found, 100, 0.05, limit)


def test_differences_are_fractions_of_the_side() -> None:
    model = detections((BOX, 0.9, 0), (FAR, 0.5, 1))
    file = detections(([10.0, 10.0, 30.0, 30.2], 0.9, 0), (FAR, 0.49, 1))
    assert difference(model, file) == (pytest.approx(0.002, abs=1e-6), pytest.approx(0.01, abs=1e-6), 2)


def test_order_of_equal_scores_does_not_matter() -> None:
    assert difference(detections((BOX, 0.5, 0), (FAR, 0.5, 0)), detections((FAR, 0.5, 0), (BOX, 0.5, 0)))[:2] == (0, 0)


@pytest.mark.parametrize("turned", [False, True])
def test_unmatched_detection_counts_with_its_score_above_the_threshold(turned: bool) -> None:
    pair = [detections((BOX, 0.9, 0), (FAR, 0.45, 1)), detections((BOX, 0.9, 0))]
    assert difference(*(pair[::-1] if turned else pair)).scores == pytest.approx(0.4)


def test_different_labels_do_not_match() -> None:
    assert difference(detections((BOX, 0.9, 0)), detections((BOX, 0.9, 1))).scores == pytest.approx(0.85)


def test_end_of_a_full_list_may_differ() -> None:
    model = detections((BOX, 0.9, 0), (FAR, 0.50001, 0))
    file = detections((BOX, 0.9, 0), ([0.0, 0.0, 5.0, 5.0], 0.50002, 0))
    assert max(difference(model, file, limit=2)[:2]) < 1e-4
    assert max(difference(model, file, limit=3)[:2]) == pytest.approx(0.45, abs=1e-4)  # not full: both are unmatched


def test_nan_score_is_a_difference() -> None:
    found = difference(detections((BOX, 0.9, 0)), detections((BOX, float("nan"), 0)))
    assert not max(found.boxes, found.scores) <= 1e-3


def test_boxes_without_area_are_not_compared() -> None:
    """A runtime may round the coordinates of a box that clipping has left no height the other way."""
    boxes, scores, labels = (
        torch.tensor([[BOX, [0.0, 100.0, 9.0, 100.0]]]),
        torch.tensor([[0.9, 0.5]]),
        torch.ones(1, 2),
    )
    whole = ExportedDetector(lambda _: (boxes, scores, labels.long()), ("a", "b"))
    part = ExportedDetector(lambda _: (boxes[:, :1], scores[:, :1], labels[:, :1].long()), ("a", "b"))
    found = compare_detectors(whole, part, [torch.zeros(1, 3, 100, 100)], 0.05, 100, 0.001)
    assert found == (0, 0, 1)


class Suppressing(ExportedDetector):
    """A model with three boxes of one label, the second of which overlaps the first with an IoU of 0.5."""

    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 20.0], [50.0, 50.0, 90.0, 90.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])

    def __init__(self, nms_thresh: float) -> None:
        super().__init__(self.suppress, ("a",))
        self.nms_thresh = nms_thresh

    def suppress(self, _: torch.Tensor) -> RawDetections:
        kept = nms(self.boxes, self.scores, self.nms_thresh)
        labels = torch.zeros(1, len(kept), dtype=torch.int64)
        return self.boxes[kept].unsqueeze(0), self.scores[kept].unsqueeze(0), labels


@pytest.mark.parametrize("thresholds", [(0.5, 0.499995), (0.49999, 0.5), (0.5001, 0.49995), (0.4995, 0.5)])
def test_overlaps_at_the_threshold_may_be_decided_otherwise(thresholds: tuple[float, float]) -> None:
    model, file = map(Suppressing, thresholds)
    images = torch.zeros(1, 3, 100, 100)
    assert {len(one.detect(images, [(100, 100)])[0]["scores"]) for one in (model, file)} == {2, 3}
    found = compare_detectors(model, file, [images], 0.05, 100, 0.001)
    assert found[:2] == (0, 0)
    assert model.nms_thresh == thresholds[0]


def test_other_overlaps_may_not() -> None:
    found = compare_detectors(Suppressing(0.51), Suppressing(0.49), [torch.zeros(1, 3, 100, 100)], 0.05, 100, 0.001)
    assert found.largest > 0.5


def test_padding_is_removed_and_boxes_are_clipped() -> None:
    boxes = torch.tensor([[BOX, FAR, [0.0] * 4]])
    exported = ExportedDetector(lambda _: (boxes, torch.tensor([[0.9, 0.6, 0.0]]), torch.tensor([[1, 0, -1]])), "ab")
    (found,) = exported.detect(torch.zeros(1, 3, 100, 100), [(60, 80)])
    assert found["boxes"].tolist() == [BOX, [50.0, 50.0, 80.0, 60.0]]
    assert found["labels"].tolist() == [1, 0]
    with pytest.raises(DfmsdError, match="can only detect"):
        exported.features(torch.zeros(1, 3, 100, 100))
