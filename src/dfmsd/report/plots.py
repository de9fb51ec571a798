"""Curves as SVG text, to be put into a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dfmsd.report.records import Column, Series

MAX_POINTS = 300
"""A longer curve is drawn as means over blocks of equal length."""

_GAP = np.array([np.nan])

# Okabe and Ito's palette: told apart by colour-blind readers as well.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=_COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": "#e6e8eb",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, selectable, searchable
    "svg.hashsalt": "dfmsd",  # the same run gives the same file
    "text.parse_math": False,  # a name may hold a dollar sign
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: Mapping[str, tuple[Column, Column]]
    """Label -> x and y of equal length; NaN breaks the line."""
    xlabel: str
    ylim: tuple[float, float] | None = None
    marks: Sequence[float] = ()
    """Where a new stage begins, in units of x."""


def draw(panels: Sequence[Panel], columns: int = 2) -> Markup:
    """Draw panels in a grid; gives an ``<svg>`` element."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_panel(ax, panel)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        return to_svg(figure)


def to_svg(figure: Figure) -> Markup:
    """Give a figure as an ``<svg>`` element."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :])  # matplotlib escapes the texts; HTML wants no XML prologue


def stage_starts(series: Series) -> list[float]:
    """Steps at which a stage after the first begins."""
    changes = np.flatnonzero(np.diff(series.stages)) + 1
    return [float(step) for step in series.columns["step"][changes]]


def curve(series: Series, name: str) -> tuple[Column, Column]:
    """Points of one column over the steps.

    Thinned to ``MAX_POINTS`` a stage, broken between stages, empty cells left out.
    """
    xs: list[Column] = []
    ys: list[Column] = []
    for stage in np.unique(series.stages):
        rows = (series.stages == stage) & np.isfinite(series.columns[name])
        if rows.any():
            xs += [_thin(series.columns["step"][rows]), _GAP]
            ys += [_thin(series.columns[name][rows]), _GAP]
    if not xs:
        return np.empty(0), np.empty(0)
    return np.concatenate(xs[:-1]), np.concatenate(ys[:-1])


def _thin(values: Column) -> Column:
    starts = np.arange(0, len(values), math.ceil(len(values) / MAX_POINTS))
    means: Column = np.add.reduceat(values, starts) / np.diff(starts, append=len(values))
    return means


def _draw_panel(ax: Axes, panel: Panel) -> None:
    for mark in panel.marks:
        ax.axvline(mark, color="#8a8f98", linewidth=0.8, linestyle=(0, (4, 3)))
    for label, (x, y) in panel.lines.items():
        few = len(x) <= 40
        ax.plot(x, y, label=label, linewidth=1.4, marker="o" if few else None, markersize=3)
    ax.set(title=panel.title, xlabel=panel.xlabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.ylim:
        ax.set_ylim(*panel.ylim)
    if len(panel.lines) > 1:
        ax.legend(ncols=math.ceil(len(panel.lines) / 6))
