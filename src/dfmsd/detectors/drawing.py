"""Boxes drawn into images by supervision."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from PIL import Image
from torch import Tensor

from dfmsd.utils.console import quiet
from dfmsd.utils.extras import import_extra


def import_supervision(feature: str) -> ModuleType:
    """Import supervision.

    Args:
        feature: What needs it, for the message.

    Raises:
        DfmsdError: It is not installed.
    """
    with quiet():  # it recommends OpenCV, which would not speed up anything noticeably
        module: ModuleType = import_extra(feature, "supervision", "predict")
    return module


def draw_boxes(image: Tensor, boxes: Tensor, labels: Tensor, captions: Sequence[str]) -> Image.Image:
    """Draw boxes with captions into a copy of an image.

    Args:
        image: uint8, ``3 x H x W``, RGB.
        boxes: ``K x 4``, xyxy in pixels of the image.
        labels: ``K``; each label has a color of its own.
        captions: One for each box.
    """
    sv = import_supervision("drawing")
    height, width = image.shape[-2:]
    thickness = sv.calculate_optimal_line_thickness((width, height))
    text_scale = max(0.4, sv.calculate_optimal_text_scale((width, height)))
    detections = sv.Detections(xyxy=boxes.numpy(), class_id=labels.numpy())
    label_annotator = sv.LabelAnnotator(
        text_scale=text_scale, text_thickness=max(1, thickness - 1), text_padding=2 * thickness
    )
    canvas = np.ascontiguousarray(image.permute(1, 2, 0).flip(2).numpy())  # supervision draws on BGR
    canvas = sv.BoxAnnotator(thickness=thickness).annotate(canvas, detections)
    canvas = label_annotator.annotate(canvas, detections, list(captions))
    return Image.fromarray(np.ascontiguousarray(canvas[:, :, ::-1]))
