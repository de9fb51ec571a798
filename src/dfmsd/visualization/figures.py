"""Matplotlib figures: one per image with a row per level, and a contact sheet of all images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfmsd.utils.fonts import find_families
from dfmsd.visualization.criteria import StageCriterion
from dfmsd.visualization.maps import LevelMaps, Map
from dfmsd.visualization.scene import Scene

COLUMNS = (
    "teacher attention (log)",
    "student attention (log)",
    "feature distance",
    "mask before enhancement",
    "mask after enhancement",
    "reconstruction error",
    "channels (orange: masked)",
)
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "text.parse_math": False,  # names may contain dollar signs
}
SIDE, TOP = 2.1, 2.6
"""Inches: side of a map with its title, and height of the input image above the maps."""
MIN_ATTENTION = 1e-3
"""Lower end of the color scale; attention has mean 1."""
TICKS = (0.1, 1.0, 10.0)
KEPT, MASKED, BOX = "#0072b2", "#d55e00", "#00ff88"
SHEET = ("input", *COLUMNS[:2], *COLUMNS[4:6])


def draw_scene(scene: Scene) -> Figure:
    """Draw the input image and, below it, a row for each level of each stage."""
    rows = [(stage, level) for stage, maps in zip(scene.stages, scene.maps, strict=True) for level in maps]
    with mpl.rc_context({**STYLE, "font.family": find_families(scene.describe())}):
        figure, top = _figure(len(rows), len(COLUMNS), TOP)
        _draw_input(figure.add_axes((0.01, top + 0.01, 0.16, 0.97 - top)), scene, "")
        figure.text(0.18, 0.985, "\n".join(scene.describe()), va="top", fontsize=10)
        for row, (stage, level) in enumerate(rows):
            _draw_level(figure.axes[row * len(COLUMNS) :][: len(COLUMNS)], stage, level, titled=row == 0)
        return figure


def draw_contact_sheet(scenes: Sequence[Scene]) -> Figure:
    """Draw a row for each image: its name, the input, and the finest level of the last stage."""
    with mpl.rc_context({**STYLE, "font.family": find_families(scene.name for scene in scenes)}):
        figure, _ = _figure(len(scenes), len(SHEET), 0.3)
        for index, scene in enumerate(scenes):
            row, level = figure.axes[index * len(SHEET) :][: len(SHEET)], scene.maps[-1][0]
            _draw_input(row[0], scene, scene.name)
            row[0].set_ylabel(f"stage {scene.stages[-1].stage}")
            titles = [f"{title}, {level.pair.student.name}" for title in SHEET[1:]]
            for ax, title, values in zip(row[1:], titles, (level.teacher, level.student), strict=False):
                _draw_map(ax, title, values, is_attention=True)
            _draw_mask(row[3], titles[2], level.enhanced_mask)
            _draw_map(row[4], titles[3], level.reconstruction_error)
        return figure


def render_png(figure: Figure, dpi: int = 110) -> bytes:
    """Render a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _figure(rows: int, columns: int, top: float) -> tuple[Figure, float]:
    """Create a grid of axes below ``top`` inches of free space.

    The margins are fixed because Matplotlib's layout engines take longer than all the drawing.

    Returns:
        The figure, and the upper end of the grid as a fraction of its height.
    """
    height = top + SIDE * rows + 0.3
    figure = Figure(figsize=(SIDE * columns + 0.5, height))
    edges = {"left": 0.6 / (SIDE * columns), "right": 0.995, "bottom": 0.35 / height, "top": 1 - top / height}
    figure.subplots(rows, columns, squeeze=False, gridspec_kw={**edges, "wspace": 0.15, "hspace": 0.3})
    return figure, 1 - (top - 0.3) / height


def _draw_level(axes: Sequence[Axes], stage: StageCriterion, level: LevelMaps, *, titled: bool) -> None:
    maps = (
        level.teacher,
        level.student,
        level.distance,
        level.mask,
        level.enhanced_mask,
        level.reconstruction_error,
    )
    for column, (ax, values) in enumerate(zip(axes, maps, strict=False)):
        title = COLUMNS[column] if titled else ""
        if column in (3, 4):
            _draw_mask(ax, title, values)
        else:
            _draw_map(ax, title, values, is_attention=column < 2)
    _draw_channels(axes[-1], COLUMNS[-1] if titled else "", level)
    student, teacher = level.pair
    correlation = "" if level.pearson is None else f"\ncorrelation {level.pearson:.2f}"
    axes[0].set_ylabel(f"stage {stage.stage}, {student.name} /{student.stride}\n<- {teacher.name}{correlation}")


def _draw_input(ax: Axes, scene: Scene, title: str) -> None:
    ax.imshow(scene.image.permute(1, 2, 0).numpy())
    for x1, y1, x2, y2 in scene.boxes.tolist():
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX, linewidth=1.2))
    _bare(ax, title)


def _draw_map(ax: Axes, title: str, values: Map | None, *, is_attention: bool = False) -> None:
    if values is None:
        _draw_nothing(ax, title)
        return
    scale = None
    if is_attention:  # a softmax: on a linear scale nearly everything would have one color
        scale = LogNorm(max(float(values.min()), MIN_ATTENTION), max(float(values.max()), 2 * MIN_ATTENTION))
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


def _draw_channels(ax: Axes, title: str, level: LevelMaps) -> None:
    order = np.argsort(-level.channels)
    masked = np.zeros(len(order), dtype=bool) if level.masked_channels is None else level.masked_channels
    colors = [MASKED if masked[channel] else KEPT for channel in order]
    ax.vlines(range(len(order)), MIN_ATTENTION, level.channels[order].clip(MIN_ATTENTION), colors=colors, linewidth=1.5)
    ax.set(title=title, yscale="log", ylim=(MIN_ATTENTION, None))
    ax.minorticks_off()
    ax.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    ax.set_xlabel(f"{len(order)} channels, strongest first", labelpad=2)


def _draw_nothing(ax: Axes, title: str) -> None:
    _bare(ax, title)
    ax.text(0.5, 0.5, "not available", ha="center", va="center", transform=ax.transAxes, color="#666666")


def _bare(ax: Axes, title: str) -> None:
    ax.set(title=title, xticks=[], yticks=[])
