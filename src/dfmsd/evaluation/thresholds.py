"""Score thresholds of a detector, chosen for each class on annotated images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from dfmsd.data.targets import kept
from dfmsd.evaluation.matching import ImageMatches, best_threshold, match_detections
from dfmsd.types import Detections, Target
from dfmsd.utils.boxes import keep_detections


class Threshold(NamedTuple):
    """Lowest score of a class's detections to keep."""

    score: float
    f1: float | None
    """F1 of these detections at IoU 0.5, 0..1; None if it was not measured."""


def choose_thresholds(detections: Sequence[Detections], targets: Sequence[Target]) -> dict[int, Threshold]:
    """Choose the threshold of each class that gives the highest F1 at IoU 0.5.

    Args:
        detections: In each image, best first; labels of the data set.
        targets: Ground truth of the same images, in the same pixels.

    Returns:
        Label -> threshold, for the classes of which at least one detection is correct.
    """
    matches: dict[int, list[ImageMatches]] = defaultdict(list)
    for found, target in zip(detections, targets, strict=True):
        for label in {*found["labels"].tolist(), *target["labels"].tolist()}:
            matches[label].append(match_detections(_of_class(found, label), kept(target, target["labels"] == label)))
    chosen = {}
    for label, images in sorted(matches.items()):
        score = best_threshold(images)
        found_above = [image.above(score) for image in images]
        if any(image.true_positives for image in found_above):
            chosen[label] = Threshold(score, _f1(found_above))
    return chosen


def above(detections: Detections, thresholds: Sequence[float]) -> Detections:
    """Keep the detections whose scores reach the thresholds of their classes.

    Args:
        detections: Labels of the data set.
        thresholds: Of each label; infinity keeps none.
    """
    return keep_detections(
        detections, detections["scores"] >= detections["scores"].new_tensor(thresholds)[detections["labels"]]
    )


def _f1(images: Sequence[ImageMatches]) -> float:
    total = sum(image.objects + len(image.correct) for image in images)
    return 2 * sum(image.true_positives for image in images) / total


def _of_class(detections: Detections, label: int) -> Detections:
    return keep_detections(detections, detections["labels"] == label)
