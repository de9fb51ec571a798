"""How far two detectors agree: the AP of the one where the other's detections are the objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hotcoco import COCO
from numpy.typing import NDArray
from torchvision.ops import box_convert

from dfmsd.detectors.base import SHOWN_SCORE
from dfmsd.evaluation.precision import average, measure_precision
from dfmsd.types import Detections
from dfmsd.utils.boxes import keep_detections


def agreement(expected: Sequence[Detections], actual: Sequence[Detections]) -> float:
    """Return COCO's AP of detections, 0..1, where the expected ones are the objects.

    Those below `SHOWN_SCORE` are none, unless all are: short trainings may not reach it.

    Args:
        expected: of each image.
        actual: of the same images.
    """
    confident = any((found["scores"] >= SHOWN_SCORE).any() for found in expected)
    objects = [keep_detections(found, found["scores"] >= (SHOWN_SCORE if confident else 0)) for found in expected]
    rows = _rows(objects)
    images = [{"id": index + 1} for index in range(len(expected))]
    categories = [{"id": int(label), "name": str(int(label))} for label in np.unique(rows[:, 6])]
    truth = COCO.from_arrays(images, categories, rows[:, 0], rows[:, 6], rows[:, 1:5])
    precision = measure_precision(truth, _rows(actual)).values
    return average(precision[..., 0]) or 0.0  # of objects of any size


def _rows(detections: Sequence[Detections]) -> NDArray[np.float64]:
    """Return the number of the image, from 1, box as xywh, score and the number of the label, from 1."""
    rows = [np.empty((0, 7))]
    for image, found in enumerate(detections, start=1):
        boxes = box_convert(found["boxes"], "xyxy", "xywh").double().numpy()
        scores, labels = found["scores"].double().numpy(), found["labels"].numpy() + 1
        rows.append(np.column_stack([np.full(len(boxes), image), boxes, scores, labels]))
    return np.concatenate(rows)
