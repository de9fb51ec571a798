"""COCO's average precision in images that are augmented as in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from hotcoco import COCO
from torch import Tensor
from torchvision.ops import box_convert

from dfmsd.data.targets import scores_of
from dfmsd.detectors.base import Detector
from dfmsd.evaluation.evaluate import detect
from dfmsd.evaluation.matching import to_data_labels
from dfmsd.evaluation.precision import average, measure_precision
from dfmsd.types import Batch
from dfmsd.utils.classes import common_classes


def augmented_ap(detector: Detector, batches: Iterable[Batch], class_names: Sequence[str]) -> float | None:
    """Return the AP of a detector in augmented images, 0..1; None if they show no object.

    The objects are those of the targets, moved as the augmentation moved them, in pixels of the input. A detector that
    was trained without such augmentation can be far worse here than in plain images.

    Args:
        detector: The detector; its classes are matched by name.
        batches: Augmented images, all labeled, on any device.
        class_names: Names of the targets' labels.
    """
    label_of = common_classes(detector.class_names, class_names)
    images: list[dict[str, int]] = []
    truth, found = [], []
    for batch in batches:
        height, width = batch.images.shape[-2:]
        for target, detections in zip(batch.targets, detect(detector, batch), strict=True):
            image = len(images) + 1
            images.append({"id": image, "height": height, "width": width})
            known = to_data_labels(detections, label_of)
            truth.append(_rows(image, target["boxes"], target["labels"], scores_of(target)))
            found.append(_rows(image, known["boxes"], known["labels"], known["scores"]))
    objects = np.concatenate(truth)
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names)]
    image_ids, category_ids = objects[:, [0, 6]].T.astype(np.int64)
    coco = COCO.from_arrays(images, categories, image_ids, category_ids, objects[:, 1:5])
    return average(measure_precision(coco, np.concatenate(found)).values[..., 0])


def _rows(image: int, boxes: Tensor, labels: Tensor, scores: Tensor) -> np.ndarray:
    """Return boxes as COCO's rows: image, x, y, width, height, score and category."""
    images = torch.full_like(labels, image)
    columns = [images[:, None], box_convert(boxes, "xyxy", "xywh"), scores[:, None], labels[:, None]]
    return torch.cat([column.detach().cpu().double() for column in columns], 1).numpy()
