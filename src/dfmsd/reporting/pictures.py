"""An image with boxes on it, for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from dfmsd.data.transforms import Sample
from dfmsd.reporting.judge import Judged
from dfmsd.reporting.page import Box, Look, Picture

LONGEST = 320
"""Side in pixels: as much as a phone shows."""
QUALITY = 80


def panel(who: str, sample: Sample, judged: Judged | None, names: Sequence[str]) -> Picture:
    """Show an image with detections, or with the truth.

    Args:
        who: whose boxes they are.
        sample: image and truth.
        judged: the detections; none for the truth.
        names: of the classes.
    """
    image: Image.Image = to_pil_image(sample.image)
    scale = min(1.0, LONGEST / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    boxes = _truth(sample, scale, names) if judged is None else _detections(judged, scale, names)
    words = f"objects {len(boxes)}" if judged is None else judged.in_words()
    classes = ", ".join(sorted({names[label] for label in sample.target["labels"].tolist()})) or "no object"
    return Picture(
        buffer.getvalue(), "jpeg", image.size, f"{who}: {words}; there is {classes}", f"{who}: {words}", boxes
    )


def _truth(sample: Sample, scale: float, names: Sequence[str]) -> list[Box]:
    pairs = zip(sample.target["boxes"].tolist(), sample.target["labels"].tolist(), strict=True)
    return [_box(corners, scale, "truth", names[label], names[label]) for corners, label in pairs]


def _detections(judged: Judged, scale: float, names: Sequence[str]) -> list[Box]:
    found = judged.detections
    looks: list[Look] = ["right" if right else "wrong" for right in judged.right.tolist()]
    parts = (found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist())
    return [
        _box(corners, scale, look, f"{names[label]} {score:.2f}, {look}", names[label])
        for corners, label, score, look in zip(*parts, looks, strict=True)
    ]


def _box(corners: Sequence[float], scale: float, look: Look, label: str, tag: str) -> Box:
    x1, y1, x2, y2 = (round(scale * value, 1) for value in corners)
    return Box(x1, y1, round(x2 - x1, 1), round(y2 - y1, 1), look, label, tag)
