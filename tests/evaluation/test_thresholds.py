from __future__ import annotations

from math import inf

import pytest
import torch

from dfmsd.evaluation.thresholds import above, choose_thresholds
from dfmsd.types import Detections, Target

BOXES = {"here": [0.0, 0.0, 10.0, 10.0], "there": [20.0, 0.0, 30.0, 10.0], "nowhere": [40.0, 40.0, 50.0, 50.0]}


def found(*rows: tuple[str, float, int]) -> Detections:
    boxes = torch.tensor([BOXES[place] for place, _, _ in rows]).reshape(-1, 4)
    scores, labels = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return {"boxes": boxes, "scores": scores, "labels": labels}


def objects(*rows: tuple[str, int]) -> Target:
    boxes = torch.tensor([BOXES[place] for place, _ in rows]).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([label for _, label in rows], dtype=torch.int64)}


def test_each_class_has_the_threshold_of_its_best_f1() -> None:
    detections = [
        found(("here", 0.9, 0), ("there", 0.6, 1), ("nowhere", 0.5, 0)),
        found(("there", 0.8, 0), ("nowhere", 0.7, 1), ("here", 0.2, 1)),
    ]
    chosen = choose_thresholds(detections, [objects(("here", 0), ("there", 1)), objects(("there", 0), ("here", 1))])
    assert chosen[0].score == pytest.approx(0.8)
    assert chosen[0].f1 == 1
    assert chosen[1].score == pytest.approx(0.2)  # 2 of 2 found and 1 wrong beat 1 found and 1 wrong
    assert chosen[1].f1 == pytest.approx(4 / 5)


def test_objects_and_wrong_detections_of_other_images_count() -> None:
    detections = [found(("here", 0.9, 0)), found(("nowhere", 0.95, 0)), found()]
    (threshold,) = choose_thresholds(detections, [objects(("here", 0)), objects(), objects(("there", 0))]).values()
    assert threshold.f1 == pytest.approx(2 / 4)


def test_a_class_without_a_correct_detection_has_no_threshold() -> None:
    detections = [found(("nowhere", 0.9, 0), ("here", 0.8, 1), ("there", 0.9, 2))]
    assert choose_thresholds(detections, [objects(("here", 0), ("there", 2))]).keys() == {2}


def test_detections_above_the_thresholds_of_their_classes() -> None:
    kept = above(found(("here", 0.9, 0), ("there", 0.5, 1), ("nowhere", 0.4, 1), ("here", 1.0, 2)), [0.95, 0.5, inf])
    assert kept["labels"].tolist() == [1]
    assert kept["scores"].tolist() == [0.5]
    assert kept["boxes"].tolist() == [BOXES["there"]]
