"""Report images with boxes drawn on them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from dfmsd.data.transforms import Sample
from dfmsd.evaluation.matching import ImageMatches
from dfmsd.reporting.page import Box, BoxStyle, Picture

MAX_SIDE = 320
"""Longer side of a picture in pixels, about the width of a phone."""
JPEG_QUALITY = 80


def image_panel(title: str, sample: Sample, matches: ImageMatches | None, class_names: Sequence[str]) -> Picture:
    """Show an image with detections, or with the ground truth.

    Args:
        title: where the boxes come from.
        sample: image and ground truth.
        matches: detections; None shows the ground truth.
        class_names: names of the labels.
    """
    image: Image.Image = to_pil_image(sample.image)
    scale = min(1.0, MAX_SIDE / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    boxes = _ground_truth(sample, scale, class_names) if matches is None else _detections(matches, scale, class_names)
    caption = f"{title}: {f'{len(boxes)} objects' if matches is None else matches.describe()}"
    classes = ", ".join(sorted({class_names[label] for label in sample.target["labels"].tolist()})) or "no objects"
    return Picture(buffer.getvalue(), "jpeg", image.size, f"{caption}; the image contains {classes}", caption, boxes)


def _ground_truth(sample: Sample, scale: float, class_names: Sequence[str]) -> list[Box]:
    pairs = zip(sample.target["boxes"].tolist(), sample.target["labels"].tolist(), strict=True)
    return [_box(corners, scale, "truth", class_names[label], class_names[label]) for corners, label in pairs]


def _detections(matches: ImageMatches, scale: float, class_names: Sequence[str]) -> list[Box]:
    detections = matches.detections
    styles: list[BoxStyle] = ["correct" if correct else "wrong" for correct in matches.correct.tolist()]
    columns = (detections["boxes"].tolist(), detections["labels"].tolist(), detections["scores"].tolist())
    return [
        _box(corners, scale, style, f"{class_names[label]} {score:.2f}, {style}", class_names[label])
        for corners, label, score, style in zip(*columns, styles, strict=True)
    ]


def _box(corners: Sequence[float], scale: float, style: BoxStyle, label: str, tag: str) -> Box:
    x1, y1, x2, y2 = (round(scale * value, 1) for value in corners)
    return Box(x1, y1, round(x2 - x1, 1), round(y2 - y1, 1), style, label, tag)
