"""Boxes drawn into images by supervision."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from PIL import Image
from torch import Tensor

from dfmsd.utils.console import quiet
from dfmsd.utils.extras import import_extra
from dfmsd.utils.fonts import find_font, say_missing

FONT_SIZE = 32
"""Pixels at a text scale of 1, as high as supervision's own letters."""


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


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    scores: Tensor,
    prefixes: Sequence[str],
) -> Image.Image:
    """Draw boxes with class names and scores into a copy of an image.

    Args:
        image: uint8, ``3 x H x W``, RGB.
        boxes: ``K x 4``, xyxy in pixels of the image.
        labels: ``K``; each label has a color of its own.
        class_names: Name of the class of each box; the number stands for one that no installed font can draw.
        scores: ``K``.
        prefixes: ASCII text in front of the name of each.
    """
    sv = import_supervision("drawing")
    height, width = image.shape[-2:]
    thickness = sv.calculate_optimal_line_thickness((width, height))
    text_scale = max(0.4, sv.calculate_optimal_text_scale((width, height)))
    detections = sv.Detections(xyxy=boxes.numpy(), class_id=labels.numpy())
    font, names = _lettering(class_names, labels)
    captions = [
        f"{prefix}{name} {score:.2f}" for prefix, name, score in zip(prefixes, names, scores.tolist(), strict=True)
    ]
    if font is None:
        label_annotator = sv.LabelAnnotator(
            text_scale=text_scale, text_thickness=max(1, thickness - 1), text_padding=2 * thickness
        )
    else:
        label_annotator = sv.RichLabelAnnotator(
            font_path=font, font_size=round(FONT_SIZE * text_scale), text_padding=2 * thickness
        )
    canvas = np.ascontiguousarray(image.permute(1, 2, 0).flip(2).numpy())  # supervision draws on BGR
    canvas = sv.BoxAnnotator(thickness=thickness).annotate(canvas, detections)
    canvas = label_annotator.annotate(canvas, detections, captions)
    return Image.fromarray(np.ascontiguousarray(canvas[:, :, ::-1]))


def _lettering(class_names: Sequence[str], labels: Tensor) -> tuple[str | None, list[str]]:
    """Return the font that names need, None for supervision's own, and the names, or numbers in their place."""
    if all(name.isascii() for name in class_names):
        return None, list(class_names)
    font, missing = find_font(frozenset(class_names))
    names = []
    for name, label in zip(class_names, labels.tolist(), strict=True):
        if name in missing:
            say_missing(name, f"its class number, {label}")
        names.append(str(label) if name in missing else name)
    return font, names
