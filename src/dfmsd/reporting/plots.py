"""Line and bar plots for a report page, as Plotly JSON."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfmsd.reporting.page import Figure, Table
from dfmsd.reporting.records import Column, Series

MAX_POINTS = 300
"""Points per stage; longer curves are averaged over blocks of equal length."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Line styles, so that lines differ in more than color."""
PATTERNS = ("", "/", "x", ".")
"""Bar patterns, for the same reason."""
COLORS = 7
"""Number of line colors in the page's style sheet."""

_GAP = np.array([np.nan])
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


def curves(
    title: str,
    lines: Mapping[str, tuple[Column, Column]],
    xlabel: str,
    stage_starts: Sequence[float] = (),
    digits: int = 3,
) -> Figure:
    """Plot lines over one x axis.

    Args:
        title: of the plot.
        lines: label -> x and y of equal length; NaN breaks the line.
        xlabel: label of the x axis.
        stage_starts: x at which a new stage starts.
        digits: decimals in the table of values.
    """
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(x) <= 40 else "lines",
            "name": escape_label(label),
            "x": _values(x),
            "y": _values(y),
            "line": {"width": 1.8, "dash": DASHES[index // COLORS % len(DASHES)]},
            "marker": {"size": 5},
        }
        for index, (label, (x, y)) in enumerate(lines.items())
    ]
    layout = {
        "margin": {"l": 48, "r": 12, "t": 24, "b": 40},
        "xaxis": {"title": {"text": escape_label(xlabel)}},
        "yaxis": {},
        "hovermode": "x unified",
        "showlegend": len(traces) > 1,
        "legend": _LEGEND,
        "shapes": [_stage_line(x) for x in stage_starts],
        "annotations": [_stage_label(x, number) for number, x in enumerate(stage_starts, 2)],
    }
    values = Table(
        ("", "first", "lowest", "highest", "last"),
        [(label, *_extent(y, digits)) for label, (_, y) in lines.items()],
    )
    return Figure(title, traces, layout, _describe_curves(title, lines, digits), values)


def bars(
    title: str,
    groups: Mapping[str, Mapping[str, float | None]],
    unit: str,
    signed: bool = False,
    digits: int = 1,
) -> Figure:
    """Plot bars, side by side for several groups.

    Args:
        title: of the plot.
        groups: group -> bar -> value; None leaves the bar out, and its name if no group has a value for it.
        unit: label of the value axis.
        signed: show the sign, for differences.
        digits: decimals of the values.
    """
    form = f"{'+' if signed else ''}.{digits}f"
    names = dict.fromkeys(name for group in groups.values() for name, value in group.items() if value is not None)
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": escape_label(label),
            "y": [escape_label(name) for name in group if name in names],
            "x": [None if value is None else round(value, 4) for name, value in group.items() if name in names],
            "marker": {"pattern": {"shape": PATTERNS[index % len(PATTERNS)], "solidity": 0.5}},
            "hovertemplate": "%{y}: %{x:" + form + "}<extra></extra>",
        }
        for index, (label, group) in enumerate(groups.items())
    ]
    layout = {
        "margin": {"l": 8, "r": 12, "t": 24, "b": 40},
        "barmode": "group",
        "xaxis": {"title": {"text": escape_label(unit)}},
        # category: a class named "3" is not a number; reversed: the first bar comes first
        "yaxis": {"type": "category", "autorange": "reversed"},
        "showlegend": len(traces) > 1,
        "legend": _LEGEND,
    }
    rows = [(name, *(_number(group.get(name), form) for group in groups.values())) for name in names]
    described = "; ".join(f"{row[0]} {', '.join(row[1:])}" for row in rows[:20])
    alt = f"{title} ({', '.join(groups)}), {unit}: {described}{', and more' if len(rows) > 20 else ''}."
    height = 120 + 20 * len(groups) + max(24, 14 * len(groups)) * len(names)
    return Figure(title, traces, layout, alt, Table(("", *groups), rows), height)


def first_steps(series: Series) -> list[float]:
    """Return the first step of every stage but the first."""
    changes = np.flatnonzero(np.diff(series.stages)) + 1
    return [float(step) for step in series.columns["step"][changes]]


def curve(series: Series, name: str) -> tuple[Column, Column]:
    """Return the points of a column over the steps.

    At most `MAX_POINTS` per stage, with NaN between stages and without empty cells.
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


def escape_label(text: str) -> str:
    """Escape text for Plotly, which interprets some HTML tags in every label."""
    return html.escape(text, quote=False)


def _thin(values: Column) -> Column:
    starts = np.arange(0, len(values), math.ceil(len(values) / MAX_POINTS))
    means: Column = np.add.reduceat(values, starts) / np.diff(starts, append=len(values))
    return means


def _values(values: Column) -> list[float | None]:
    """Convert to JSON numbers with the precision that a plot can show; None for NaN."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _stage_line(x: float) -> dict[str, Any]:
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1, "dash": "dash"}}


def _stage_label(x: float, number: int) -> dict[str, Any]:
    place = {"x": x, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top"}
    return {**place, "text": f"stage {number}", "showarrow": False}


def _extent(y: Column, digits: int) -> tuple[str, ...]:
    known = y[np.isfinite(y)]
    if not len(known):
        return ("–",) * 4
    return tuple(f"{value:.{digits}f}" for value in (known[0], known.min(), known.max(), known[-1]))


def _describe_curves(title: str, lines: Mapping[str, tuple[Column, Column]], digits: int) -> str:
    extents = {label: _extent(y, digits) for label, (_, y) in lines.items()}
    described = "; ".join(f"{label} from {first} to {last}" for label, (first, _, _, last) in extents.items())
    return f"{title or 'Curves'}: {described}."


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
