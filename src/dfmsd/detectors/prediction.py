"""Detections in one image, in its own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from dfmsd.detectors.drawing import draw_boxes, import_supervision
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections
from dfmsd.utils.boxes import has_area

NO_TRACK = -1
"""Track id of a detection that has none, as in supervision."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Detections in one image, best first, on the CPU; ``len()`` is their number.

    Attributes:
        boxes: float32, ``K x 4``, xyxy in pixels of the original image, clipped to it.
        scores: float32, ``K``, in 0..1.
        labels: int64, ``K``, indices into the detector's class names.
        class_names: name of the class of each detection.
        image_size: height and width of the original image.
        image: the original image, uint8, ``3 x H x W``, RGB.
        track_ids: int64, ``K``, the same for an object in all frames of a video, `NO_TRACK` for one in its first frame;
            None if objects were not tracked.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    image: Tensor = field(repr=False)
    track_ids: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def to_supervision(self) -> Any:
        """Convert to supervision's ``Detections``, with ``class_name`` in its data.

        Raises:
            DfmsdError: supervision is not installed.
        """
        sv = import_supervision("Prediction.to_supervision")
        return sv.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.numpy(),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )

    def plot(self) -> Image.Image:
        """Draw boxes, class names, scores and any track ids into a copy of the image.

        A name that no installed font has the letters of is drawn as the number of its class, which is logged once.

        Raises:
            DfmsdError: supervision is not installed.
        """
        ids = [NO_TRACK] * len(self) if self.track_ids is None else self.track_ids.tolist()
        prefixes = ["" if track_id == NO_TRACK else f"#{track_id} " for track_id in ids]
        return draw_boxes(self.image, self.boxes, self.labels, self.class_names, self.scores, prefixes)


def to_prediction(
    detections: Detections, image: Tensor, scale: tuple[float, float], class_names: Sequence[str], min_score: float
) -> Prediction:
    """Convert detections in the network input to the original image.

    Args:
        detections: Detections, boxes in pixels of the padded input.
        image: Original image, uint8, ``3 x H x W``, RGB.
        scale: Input pixels per original pixel, vertical and horizontal.
        class_names: Class names of the detector.
        min_score: Detections with lower scores are dropped, 0..1, as are boxes without area inside the image.
    """
    height, width = image.shape[-2:]
    vertical, horizontal = scale
    boxes = detections["boxes"].detach().cpu().double()
    boxes = clip_boxes_to_image(boxes / boxes.new_tensor([horizontal, vertical] * 2), (height, width)).float()
    scores, labels = detections["scores"].detach().cpu().float(), detections["labels"].detach().cpu()
    keep = (scores >= min_score) & has_area(boxes)
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    names = tuple(class_names[label] for label in labels.tolist())
    return Prediction(boxes, scores, labels.to(torch.int64), names, (height, width), image)


def check_score(score: object, name: str = "score") -> None:
    """Check a score threshold.

    Args:
        score: The threshold.
        name: Name of the setting, for the message.

    Raises:
        DfmsdError: It is not in 0..1.
    """
    if not isinstance(score, int | float | np.number) or not 0 <= score <= 1:
        raise DfmsdError(f"{name} must be a number in 0..1, got {score!r}")
