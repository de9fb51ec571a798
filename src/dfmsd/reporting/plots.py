"""Curves and bars for a page, as plotly's own JSON."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfmsd.reporting.page import Figure, Table
from dfmsd.reporting.records import Column, Series

MAX_POINTS = 300
"""A longer curve is drawn as means over blocks of equal length."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Lines are told apart by more than their colour."""
PATTERNS = ("", "/", "x", ".")
"""So are bars."""
COLOURS = 7
"""How many there are in the page's style."""

_GAP = np.array([np.nan])
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


def curves(
    title: str,
    lines: Mapping[str, tuple[Column, Column]],
    xlabel: str,
    marks: Sequence[float] = (),
    digits: int = 3,
) -> Figure:
    """Plot lines over one x axis.

    Args:
        title: what it shows.
        lines: label -> x and y of equal length; NaN breaks the line.
        xlabel: of the x axis.
        marks: where a new stage begins, in units of x.
        digits: after the point, in the numbers below the plot.
    """
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(x) <= 40 else "lines",
            "name": plain(label),
            "x": _values(x),
            "y": _values(y),
            "line": {"width": 1.8, "dash": DASHES[index // COLOURS % len(DASHES)]},
            "marker": {"size": 5},
        }
        for index, (label, (x, y)) in enumerate(lines.items())
    ]
    layout = {
        "margin": {"l": 48, "r": 12, "t": 24, "b": 40},
        "xaxis": {"title": {"text": plain(xlabel)}},
        "yaxis": {},
        "hovermode": "x unified",
        "showlegend": len(traces) > 1,
        "legend": _LEGEND,
        "shapes": [_mark(x) for x in marks],
        "annotations": [_stage(x, number) for number, x in enumerate(marks, 2)],
    }
    values = Table(
        ("", "first", "lowest", "highest", "last"),
        [(label, *_extent(y, digits)) for label, (_, y) in lines.items()],
    )
    return Figure(title, traces, layout, _curves_in_words(title, lines, digits), values)


def bars(title: str, groups: Mapping[str, Mapping[str, float | None]], unit: str, signed: bool = False) -> Figure:
    """Plot bars, side by side where there are several groups.

    Args:
        title: what it shows.
        groups: name of a group -> name of a bar -> value; None leaves it out, and the name where no group has a value.
        unit: of the values.
        signed: write the sign: the values are differences.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name, value in group.items() if value is not None))
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(label),
            "y": [plain(name) for name in group if name in names],
            "x": [None if value is None else round(value, 4) for name, value in group.items() if name in names],
            "marker": {"pattern": {"shape": PATTERNS[index % len(PATTERNS)], "solidity": 0.5}},
            "hovertemplate": "%{y}: %{x:" + ("+" if signed else "") + ".1f}<extra></extra>",
        }
        for index, (label, group) in enumerate(groups.items())
    ]
    layout = {
        "margin": {"l": 8, "r": 12, "t": 24, "b": 40},
        "barmode": "group",
        "xaxis": {"title": {"text": plain(unit)}},
        # a class that is called "3" is no number; the first one stands on top
        "yaxis": {"type": "category", "autorange": "reversed"},
        "showlegend": len(traces) > 1,
        "legend": _LEGEND,
    }
    form = "+.1f" if signed else ".1f"
    rows = [(name, *(_number(group.get(name), form) for group in groups.values())) for name in names]
    told = "; ".join(f"{row[0]} {', '.join(row[1:])}" for row in rows[:20])
    alt = f"{title} ({', '.join(groups)}), {unit}: {told}{', and more' if len(rows) > 20 else ''}."
    height = 120 + 20 * len(groups) + max(24, 14 * len(groups)) * len(names)
    return Figure(title, traces, layout, alt, Table(("", *groups), rows), height)


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


def plain(text: str) -> str:
    """Give a text as plotly shows it unchanged: it takes some HTML for markup wherever it writes."""
    return html.escape(text, quote=False)


def _thin(values: Column) -> Column:
    starts = np.arange(0, len(values), math.ceil(len(values) / MAX_POINTS))
    means: Column = np.add.reduceat(values, starts) / np.diff(starts, append=len(values))
    return means


def _values(values: Column) -> list[float | None]:
    """Give numbers that JSON has, in as many digits as a plot can show."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _mark(x: float) -> dict[str, Any]:
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1, "dash": "dash"}}


def _stage(x: float, number: int) -> dict[str, Any]:
    place = {"x": x, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top"}
    return {**place, "text": f"stage {number}", "showarrow": False}


def _extent(y: Column, digits: int) -> tuple[str, ...]:
    known = y[np.isfinite(y)]
    if not len(known):
        return ("–",) * 4
    return tuple(f"{value:.{digits}f}" for value in (known[0], known.min(), known.max(), known[-1]))


def _curves_in_words(title: str, lines: Mapping[str, tuple[Column, Column]], digits: int) -> str:
    extents = {label: _extent(y, digits) for label, (_, y) in lines.items()}
    told = "; ".join(f"{label} from {first} to {last}" for label, (first, _, _, last) in extents.items())
    return f"{title or 'Curves'}: {told}."


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
