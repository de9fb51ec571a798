from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dfmsd.report.plots import MAX_POINTS, Panel, curve, draw, stage_starts
from dfmsd.report.records import Series


def series(stage, **columns) -> Series:
    n = len(stage)
    arrays = {"step": np.arange(n), "stage": stage, **columns}
    return Series({name: np.asarray(values, dtype=float) for name, values in arrays.items()}, {})


def test_a_curve_is_broken_between_stages_and_joined_over_empty_cells():
    data = series([1, 1, 1, 2, 2], loss=[5, np.nan, 3, 2, 1])
    x, y = curve(data, "loss")
    np.testing.assert_array_equal(x, [0, 2, np.nan, 3, 4])
    np.testing.assert_array_equal(y, [5, 3, np.nan, 2, 1])


def test_a_term_of_one_stage_has_no_points_in_the_other():
    x, _ = curve(series([1, 1, 2], sfa=[np.nan, np.nan, 7]), "sfa")
    np.testing.assert_array_equal(x, [2])


def test_a_column_without_values_is_an_empty_curve():
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


def test_stage_starts_are_steps():
    assert stage_starts(series([1, 1, 2, 2, 3])) == [2.0, 4.0]
    assert stage_starts(series([np.nan, np.nan])) == []


def test_labels_are_escaped_text_of_well_formed_svg():
    line = (np.arange(3.0), np.arange(3.0))
    svg = draw([Panel("a & b", {"<script>": line, "50$ and 20$": line}, "step", marks=[1.0])])
    texts = ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "<script>", "50$ and 20$", "step"} <= set(texts)


def test_the_same_data_give_the_same_svg():
    panels = [Panel(str(i), {"x": (np.arange(3.0), np.arange(3.0) * i)}, "step") for i in range(3)]
    assert draw(panels) == draw(panels)
