"""COCO's average precision, by hotcoco."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray


class Precision(NamedTuple):
    """Precision of detections, with at most 100 per image."""

    values: NDArray[np.float64]
    """IoU threshold x recall x class x area (any, small, medium, large); -1 where there is no object."""
    places: dict[int, int]
    """Category id -> its place among the classes."""


def measure_precision(
    truth: COCO, detections: NDArray[np.float64], image_ids: Sequence[int] | None = None
) -> Precision:
    """Match detections with the ground truth.

    Args:
        truth: the ground truth.
        detections: ``K x 7``: id of the image, x, y, width, height, score and category id.
        image_ids: the images that were evaluated; None for all.
    """
    evaluation = COCOeval(truth, truth.load_res(detections), "bbox")
    if image_ids is not None:
        evaluation.params.img_ids = list(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    places = {category_id: index for index, category_id in enumerate(evaluation.params.cat_ids)}
    return Precision(evaluation.eval["precision"][..., -1], places)


def average(precision: NDArray[np.float64]) -> float | None:
    """Average over the classes with an object; None if there is none, for which COCO has -1."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None
