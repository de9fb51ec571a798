from __future__ import annotations

import pytest
import torch

from dfmsd.evaluation.matching import best_threshold, match_detections


def detections(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}


def target(*rows):
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return {"boxes": values[:, :4], "labels": values[:, 4].long()}


def test_each_object_is_matched_once_by_the_highest_score():
    matches = match_detections(detections((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 9, 0.8, 1)), target((0, 0, 10, 10, 1)))
    assert matches.correct.tolist() == [True, False]
    assert matches.describe() == "1 of 1 found, 1 wrong"
    assert matches.f1 == pytest.approx(2 / 3)


def test_match_requires_class_and_iou():
    objects = target((0, 0, 10, 10, 1), (20, 0, 30, 10, 0))
    matches = match_detections(
        detections((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 4.9, 0.8, 0), (20, 0, 30, 5.1, 0.7, 0)), objects
    )
    assert matches.correct.tolist() == [False, False, True]


def test_detection_matches_object_with_highest_iou():
    objects = target((0, 0, 10, 10, 0), (2, 0, 12, 10, 0))
    matches = match_detections(detections((2, 0, 12, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0)), objects)
    assert matches.correct.tolist() == [True, True]


def test_f1_without_objects():
    assert match_detections(detections(), target()).f1 == 1
    assert match_detections(detections((0, 0, 1, 1, 0.5, 0)), target()).f1 == 0
    assert match_detections(detections(), target((0, 0, 1, 1, 0))).f1 == 0


def test_best_threshold_equals_exhaustive_search():
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(8):
        corners = torch.randint(0, 4, (5, 2), generator=generator) * 10.0
        boxes = torch.cat([corners, corners + 10], dim=1)
        scores = torch.rand(5, generator=generator).sort(descending=True).values
        detections = {"boxes": boxes, "scores": scores, "labels": torch.zeros(5, dtype=torch.int64)}
        images.append(match_detections(detections, target((0, 0, 10, 10, 0), (10, 10, 20, 20, 0))))
    assert sum(one.true_positives for one in images) > 3

    def f1(threshold):
        kept = [one.above(threshold) for one in images]
        return 2 * sum(one.true_positives for one in kept) / sum(one.objects + len(one.correct) for one in kept)

    tried = [f1(float(score)) for one in images for score in one.detections["scores"]]
    assert f1(best_threshold(images)) == pytest.approx(max(tried))


def test_no_correct_detection_hides_all():
    matches = match_detections(detections((0, 0, 1, 1, 0.9, 0)), target((5, 5, 9, 9, 0)))
    assert len(matches.above(best_threshold([matches])).correct) == 0
