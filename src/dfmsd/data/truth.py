"""Annotated objects, kept as columns: what the readers of all formats return, and ground truth for COCO evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class GroundTruth(NamedTuple):
    """All annotations of a split, crowds included; the arrays may be memory maps."""

    images: NDArray[np.int64]
    """``M``: id of the image."""
    labels: NDArray[np.int64]
    """``M``: indices into the class names."""
    boxes: NDArray[np.float64]
    """``M x 4``: x, y, width and height in pixels, as annotated."""
    areas: NDArray[np.float64]
    """``M``, in pixels: that of the segmentation where the file states it, else of the box."""
    crowds: NDArray[np.bool_]
    """``M``."""

    @classmethod
    def of_boxes(cls, images: Sequence[int], labels: Sequence[int], boxes: Any) -> GroundTruth:
        """Return objects that have a box and nothing else."""
        array = np.asarray(boxes, np.float64).reshape(-1, 4)
        numbers = (np.array(images, np.int64), np.array(labels, np.int64))
        return cls(*numbers, array, array[:, 2] * array[:, 3], np.zeros(len(array), np.bool_))

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> GroundTruth:
        """Return some of the annotations."""
        return GroundTruth._make(column[rows] for column in self)

    def entries(self, category_ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return the annotations as in a COCO file, numbered from 1: COCO evaluation treats id 0 as "no match".

        Args:
            category_ids: Of each label.
        """
        columns = (self.images, category_ids[self.labels], self.boxes, self.areas, self.crowds)
        return [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, category, box, area, crowd) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), 1
            )
        ]
