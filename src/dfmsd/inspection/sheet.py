"""Contact sheet of a split: some of its images with their boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from dfmsd.data.records import ImageRecord
from dfmsd.data.split import DetectionSplit
from dfmsd.data.transforms import Sample, fit
from dfmsd.utils.fonts import find_families

IMAGES = 12
"""On a sheet."""
COLUMNS = 4
SIDE = 320
"""Longer side of an image, in pixels."""
INCHES = 2.4
"""Width of a column."""
LEGEND = 20
"""Classes in the legend."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
"""Of classes, in turn; told apart with all kinds of color vision (Okabe and Ito)."""


def choose_images(split: DetectionSplit) -> list[tuple[ImageRecord, Sample]]:
    """Return images that are evenly spread over a split, resized, with their boxes."""
    step = max(1, len(split) // IMAGES)
    return [(split.records[index], fit(*split[index], SIDE)) for index in range(0, len(split), step)[:IMAGES]]


def draw_sheet(images: Sequence[tuple[ImageRecord, Sample]], class_names: Sequence[str]) -> Figure:
    """Draw images with their boxes, a color for each class.

    Args:
        images: At least one.
        class_names: Names of the labels.
    """
    names = [record.path.name for record, _ in images]
    rows = math.ceil(len(images) / COLUMNS)
    style: dict[Any, Any] = {
        "font.family": find_families([*names, *class_names]),
        "font.size": 8,
        "text.parse_math": False,
    }
    with mpl.rc_context(style):
        figure = Figure((COLUMNS * INCHES, rows * INCHES + 0.6), layout="constrained")
        axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        for axis, name, (_, sample) in zip(axes, names, images, strict=False):
            axis.imshow(sample.image.permute(1, 2, 0).numpy())
            axis.set_title(name if len(name) <= 32 else f"...{name[-30:]}", fontsize=7)
            pairs = zip(sample.target["boxes"].tolist(), sample.target["labels"].tolist(), strict=True)
            for (x1, y1, x2, y2), label in pairs:
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1, color=_color(label)))
        handles = [Patch(color=_color(label), label=name) for label, name in enumerate(class_names[:LEGEND])]
        figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
        return figure


def _color(label: int) -> str:
    return COLORS[label % len(COLORS)]
