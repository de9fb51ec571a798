from __future__ import annotations

import pytest
import torch

from dfmsd.reporting.judge import best_threshold, judge


def found(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}


def truth(*rows):
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return {"boxes": values[:, :4], "labels": values[:, 4].long()}


def test_each_object_is_found_once_by_the_best_score():
    judged = judge(found((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 9, 0.8, 1)), truth((0, 0, 10, 10, 1)))
    assert judged.right.tolist() == [True, False]
    assert judged.in_words() == "1 of 1 found, 1 wrong"
    assert judged.f1 == pytest.approx(2 / 3)


def test_class_and_overlap_count():
    objects = truth((0, 0, 10, 10, 1), (20, 0, 30, 10, 0))
    judged = judge(found((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 4.9, 0.8, 0), (20, 0, 30, 5.1, 0.7, 0)), objects)
    assert judged.right.tolist() == [False, False, True]


def test_a_detection_takes_the_object_that_it_overlaps_most():
    objects = truth((0, 0, 10, 10, 0), (2, 0, 12, 10, 0))
    judged = judge(found((2, 0, 12, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0)), objects)
    assert judged.right.tolist() == [True, True]


def test_nothing_to_find_and_nothing_found_is_perfect():
    assert judge(found(), truth()).f1 == 1
    assert judge(found((0, 0, 1, 1, 0.5, 0)), truth()).f1 == 0
    assert judge(found(), truth((0, 0, 1, 1, 0))).f1 == 0


def test_the_threshold_is_the_one_that_trying_all_of_them_finds():
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(8):
        corners = torch.randint(0, 4, (5, 2), generator=generator) * 10.0
        boxes = torch.cat([corners, corners + 10], dim=1)
        scores = torch.rand(5, generator=generator).sort(descending=True).values
        detections = {"boxes": boxes, "scores": scores, "labels": torch.zeros(5, dtype=torch.int64)}
        images.append(judge(detections, truth((0, 0, 10, 10, 0), (10, 10, 20, 20, 0))))
    assert sum(one.found for one in images) > 3

    def f1(threshold):
        kept = [one.at(threshold) for one in images]
        return 2 * sum(one.found for one in kept) / sum(one.objects + len(one.right) for one in kept)

    tried = [f1(float(score)) for one in images for score in one.detections["scores"]]
    assert f1(best_threshold(images)) == pytest.approx(max(tried))


def test_without_a_right_detection_nothing_is_shown():
    judged = judge(found((0, 0, 1, 1, 0.9, 0)), truth((5, 5, 9, 9, 0)))
    assert len(judged.at(best_threshold([judged])).right) == 0
