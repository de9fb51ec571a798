"""The pictures: one of an image, a row a level, and a contact sheet of all images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from dfmsd.visualization.layers import Lesson
from dfmsd.visualization.look import LevelView, Map, mean_pearson

COLUMNS = (
    "teacher's attention (log)",
    "student's attention (log)",
    "distance of the features",
    "mask before enhancement",
    "mask after enhancement",
    "error of the reconstruction",
    "channels (orange: masked)",
)
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "text.parse_math": False,  # a name may hold a dollar sign
}
SIDE, TOP = 2.1, 2.6
"""Inches: a map with its title, and the input above them."""
LEAST = 1e-3
"""Of an attention of mean 1: what is below looks alike."""
TICKS = (0.1, 1.0, 10.0)
KEPT, MASKED, BOX = "#0072b2", "#d55e00", "#00ff88"
SHEET = ("input", *COLUMNS[:2], *COLUMNS[4:6])


@dataclass(frozen=True)
class Scene:
    """One image and what was seen in it.

    Attributes:
        name: of the image.
        image: ``3 x H x W``, 0..1, padded as the networks see it.
        boxes: ``M x 4``, xyxy, where masking enhancement sees objects.
        boxes_are: whose they are, in words.
        lessons: the stages.
        views: the levels of each stage.
    """

    name: str
    image: Tensor
    boxes: Tensor
    boxes_are: str
    lessons: Sequence[Lesson]
    views: Sequence[Sequence[LevelView]]


def draw_scene(scene: Scene) -> Figure:
    """Draw the input, and below it a row for each level of each stage."""
    rows = [(lesson, view) for lesson, views in zip(scene.lessons, scene.views, strict=True) for view in views]
    with mpl.rc_context(STYLE):
        figure, top = _figure(len(rows), len(COLUMNS), TOP)
        _draw_input(figure.add_axes((0.01, top + 0.01, 0.16, 0.97 - top)), scene, "")
        figure.text(0.18, 0.985, "\n".join(in_words(scene)), va="top", fontsize=10)
        for place, (lesson, view) in enumerate(rows):
            _draw_level(figure.axes[place * len(COLUMNS) :][: len(COLUMNS)], lesson, view, titled=place == 0)
        return figure


def draw_contact_sheet(scenes: Sequence[Scene]) -> Figure:
    """Draw a row for each image: the input, and the finest level of the last stage, beside its name."""
    with mpl.rc_context(STYLE):
        figure, _ = _figure(len(scenes), len(SHEET), 0.3)
        for place, scene in enumerate(scenes):
            row, view = figure.axes[place * len(SHEET) :][: len(SHEET)], scene.views[-1][0]
            _draw_input(row[0], scene, scene.name)
            row[0].set_ylabel(f"stage {scene.lessons[-1].stage}")
            titles = [f"{title}, {view.pair.student.name}" for title in SHEET[1:]]
            for ax, title, values in zip(row[1:], titles, (view.teacher, view.student), strict=False):
                _draw_map(ax, title, values, is_attention=True)
            _draw_mask(row[3], titles[2], view.after)
            _draw_map(row[4], titles[3], view.rebuilt)
        return figure


def in_words(scene: Scene) -> list[str]:
    """Tell what is in the picture, and what is missing and why."""
    lines = [scene.name, f"boxes: {scene.boxes_are} ({len(scene.boxes)})"]
    for lesson, views in zip(scene.lessons, scene.views, strict=True):
        correlation = mean_pearson(views)
        told = "" if correlation is None else f", mean correlation of the features {correlation:.2f}"
        lines.append(f"stage {lesson.stage}: teacher {lesson.teacher}{told}")
        if not lesson.trained:
            lines.append(f"no reconstruction: {lesson.note}")
        elif all(view.rebuilt is None for view in views):
            lines.append("no reconstruction: this loss rebuilds nothing that could be shown")
    return lines


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Give a figure as a PNG file."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _figure(rows: int, columns: int, top: float) -> tuple[Figure, float]:
    """Make axes row by row, below a free space of ``top`` inches; gives the share of the height that they end at.

    Laid out by hand, since matplotlib's own layouts take longer than everything else.
    """
    height = top + SIDE * rows + 0.3
    figure = Figure(figsize=(SIDE * columns + 0.5, height))
    edges = {"left": 0.6 / (SIDE * columns), "right": 0.995, "bottom": 0.35 / height, "top": 1 - top / height}
    figure.subplots(rows, columns, squeeze=False, gridspec_kw={**edges, "wspace": 0.15, "hspace": 0.3})
    return figure, 1 - (top - 0.3) / height


def _draw_level(axes: Sequence[Axes], lesson: Lesson, view: LevelView, *, titled: bool) -> None:
    maps = (view.teacher, view.student, view.distance, view.before, view.after, view.rebuilt)
    for column, (ax, values) in enumerate(zip(axes, maps, strict=False)):
        title = COLUMNS[column] if titled else ""
        if column in (3, 4):
            _draw_mask(ax, title, values)
        else:
            _draw_map(ax, title, values, is_attention=column < 2)
    _draw_channels(axes[-1], COLUMNS[-1] if titled else "", view)
    level = view.pair.student
    told = "" if view.pearson is None else f"\ncorrelation {view.pearson:.2f}"
    axes[0].set_ylabel(f"stage {lesson.stage}, {level.name} /{level.stride}\n<- {view.pair.teacher.name}{told}")


def _draw_input(ax: Axes, scene: Scene, title: str) -> None:
    ax.imshow(scene.image.permute(1, 2, 0).numpy())
    for x1, y1, x2, y2 in scene.boxes.tolist():
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX, linewidth=1.2))
    _bare(ax, title)


def _draw_map(ax: Axes, title: str, values: Map | None, *, is_attention: bool = False) -> None:
    if values is None:
        _draw_nothing(ax, title)
        return
    # attention comes from a softmax, and masks follow its order: nearly all of it would be one colour otherwise
    scale = LogNorm(max(float(values.min()), LEAST), max(float(values.max()), 2 * LEAST)) if is_attention else None
    ax.imshow(values, cmap="viridis", norm=scale, interpolation="nearest")
    _bare(ax, title)
    ax.set_xlabel(f"{values.min():.2g} to {values.max():.2g}", labelpad=2)


def _draw_mask(ax: Axes, title: str, mask: Map | None) -> None:
    if mask is None:
        _draw_nothing(ax, title)
        return
    ax.imshow(mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(ax, title)
    ax.set_xlabel(f"{1 - mask.mean():.0%} masked (black)", labelpad=2)


def _draw_channels(ax: Axes, title: str, view: LevelView) -> None:
    order = np.argsort(-view.channels)
    masked = np.zeros(len(order), dtype=bool) if view.masked_channels is None else view.masked_channels
    colours = [MASKED if masked[channel] else KEPT for channel in order]
    ax.vlines(range(len(order)), LEAST, view.channels[order].clip(LEAST), colors=colours, linewidth=1.5)
    ax.set(title=title, yscale="log", ylim=(LEAST, None))
    ax.minorticks_off()
    ax.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    ax.set_xlabel(f"{len(order)} channels, strongest first", labelpad=2)


def _draw_nothing(ax: Axes, title: str) -> None:
    _bare(ax, title)
    ax.text(0.5, 0.5, "not there", ha="center", va="center", transform=ax.transAxes, color="#666666")


def _bare(ax: Axes, title: str) -> None:
    ax.set(title=title, xticks=[], yticks=[])
