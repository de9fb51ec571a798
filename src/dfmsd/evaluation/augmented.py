"""COCO's average precision in images that are augmented as in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from hotcoco import COCO
from torch import Tensor
from torchvision.ops import box_convert

from dfmsd.detectors.base import Detector
from dfmsd.evaluation.evaluate import detect
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
    sizes: list[tuple[int, int]] = []
    truth, found = [], []
    for batch in batches:
        for target, result in zip(batch.targets, detect(detector, batch), strict=True):
            image = len(sizes) + 1
            sizes.append((batch.images.shape[-2], batch.images.shape[-1]))
            known = [row for row, label in enumerate(result["labels"].tolist()) if label in label_of]
            labels = torch.tensor([label_of[int(result["labels"][row])] for row in known])
            truth.append(_rows(image, target["boxes"], target["labels"]))
            found.append(_rows(image, result["boxes"][known], labels, result["scores"][known]))
    objects, detections = np.concatenate(truth), np.concatenate(found)
    images = [{"id": row + 1, "height": height, "width": width} for row, (height, width) in enumerate(sizes)]
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names)]
    image_ids, category_ids = objects[:, [0, 6]].T.astype(np.int64)
    coco = COCO.from_arrays(images, categories, image_ids, category_ids, objects[:, 1:5])
    return average(measure_precision(coco, detections).values[..., 0])


def _rows(image: int, boxes: Tensor, labels: Tensor, scores: Tensor | None = None) -> np.ndarray:
    """Return boxes as COCO's rows: image, x, y, width, height, score and category."""
    columns = [labels.new_full((len(boxes), 1), image), box_convert(boxes, "xyxy", "xywh")]
    columns += [boxes.new_ones(len(boxes), 1) if scores is None else scores[:, None], labels[:, None]]
    return torch.cat([column.detach().cpu().double() for column in columns], 1).numpy()
