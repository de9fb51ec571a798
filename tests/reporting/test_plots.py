from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from plotly.graph_objects import Figure

from dfmsd.reporting.plots import MAX_POINTS, bars, curve, curves, first_steps
from dfmsd.reporting.records import Series


def series(stage, **columns) -> Series:
    n = len(stage)
    arrays = {"step": np.arange(n), "stage": stage, **columns}
    return Series({name: np.asarray(values, dtype=float) for name, values in arrays.items()}, {})


def test_curve_breaks_between_stages_but_not_at_empty_cells():
    data = series([1, 1, 1, 2, 2], loss=[5, np.nan, 3, 2, 1])
    x, y = curve(data, "loss")
    np.testing.assert_array_equal(x, [0, 2, np.nan, 3, 4])
    np.testing.assert_array_equal(y, [5, 3, np.nan, 2, 1])


def test_term_of_one_stage_has_no_points_in_the_other():
    x, _ = curve(series([1, 1, 2], sfa=[np.nan, np.nan, 7]), "sfa")
    np.testing.assert_array_equal(x, [2])


def test_column_without_values_is_empty_curve():
    x, y = curve(series([1, 1], sfa=[np.nan, np.nan]), "sfa")
    assert len(x) == len(y) == 0


@given(st.integers(1, 3 * MAX_POINTS), st.integers(0, 2**32 - 1))
def test_thinning_keeps_the_range_and_short_curves(length, seed):
    values = np.random.default_rng(seed).normal(size=length)
    x, y = curve(series(np.ones(length), loss=values), "loss")
    assert len(x) == len(y) <= MAX_POINTS
    assert (np.diff(x) > 0).all()
    assert y.min() >= values.min() - 1e-12
    assert y.max() <= values.max() + 1e-12
    if length <= MAX_POINTS:
        np.testing.assert_array_equal(y, values)


def test_thinning_averages_blocks_of_equal_length_but_the_last():
    values = np.arange(2 * MAX_POINTS - 1)
    _, y = curve(series(np.ones(len(values)), loss=values), "loss")
    np.testing.assert_array_equal(y[:-1], np.arange(MAX_POINTS - 1) * 2 + 0.5)
    assert y[-1] == values[-1]


def test_first_steps_of_stages():
    assert first_steps(series([1, 1, 2, 2, 3])) == [2.0, 4.0]
    assert first_steps(series([np.nan, np.nan])) == []


def test_labels_are_escaped():
    line = (np.arange(3.0), np.arange(3.0))
    figure = curves("a & b", {"<script>": line, "<b>50$</b> &lt;": line}, "step", stage_starts=[1.0])
    assert [trace["name"] for trace in figure.traces] == ["&lt;script&gt;", "&lt;b&gt;50$&lt;/b&gt; &amp;lt;"]
    assert [row[0] for row in figure.values.rows] == ["<script>", "<b>50$</b> &lt;"]  # the page escapes these itself
    assert bars("", {"<i>g": {"<a href='x'>": 1.0}}, "<u>").traces[0]["y"] == ["&lt;a href='x'&gt;"]


def test_figures_are_deterministic():
    lines = {str(i): (np.arange(3.0), np.arange(3.0) * i) for i in range(3)}
    assert curves("", lines, "step") == curves("", lines, "step")


def test_plotly_accepts_every_key():
    line = (np.array([0.0, 1.0, np.nan, 2.0]), np.array([3.0, np.nan, np.nan, 1.0]))
    drawn = [
        curves("AP", {"a": line, "b": (np.empty(0), np.empty(0))}, "step", stage_starts=[1.5]),
        bars("AP by class", {"student": {"1": 10.0, "2": None}, "baseline": {"1": 9.0}}, "AP", signed=True),
    ]
    for figure in drawn:
        Figure(data=list(figure.traces), layout=dict(figure.layout))  # rejects unknown keys
        json.dumps([figure.traces, figure.layout], allow_nan=False)


def test_curve_has_table_and_alt_text():
    figure = curves("loss", {"p3": (np.arange(4.0), np.array([2.0, 4.0, np.nan, 1.0]))}, "step", digits=1)
    assert figure.values.rows == [("p3", "2.0", "1.0", "4.0", "1.0")]
    assert figure.alt == "loss: p3 from 2.0 to 1.0."
    assert figure.traces[0]["y"] == [2.0, 4.0, None, 1.0]


def test_stage_lines_are_labeled():
    figure = curves("", {"loss": (np.arange(3.0), np.arange(3.0))}, "step", stage_starts=[1.0, 2.0])
    assert [note["text"] for note in figure.layout["annotations"]] == ["stage 2", "stage 3"]
    assert [shape["x0"] for shape in figure.layout["shapes"]] == [1.0, 2.0]


def test_bars_skip_unknown_values_and_keep_order():
    figure = bars("AP", {"a": {"x": 1.25, "y": None}, "b": {"z": -2.0}}, "AP", signed=True)
    assert (figure.traces[0]["y"], figure.traces[0]["x"]) == (["x"], [1.25])
    assert figure.values.header == ("", "a", "b")
    assert figure.values.rows == [("x", "+1.2", "–"), ("z", "–", "-2.0")]
