from __future__ import annotations

import numpy as np
import pytest

from dfmsd.distillation.stages import StageConfig
from dfmsd.reporting.records import Series, read_run
from dfmsd.reporting.runconfig import TermWeight
from dfmsd.reporting.training import precision_section, training_sections, without_weights


def figures(sections):
    return {figure.title: figure for section in sections for figure in section.figures}


def test_weight_and_logged_balance_are_removed_per_stage():
    log = Series(
        {"stage": np.array([1.0, 1, 2, 3]), "mask/p3": np.full(4, 6.0), "balance": np.array([1.0, 3, 3, 3])}, {}
    )
    plain = without_weights(log, "mask/p3", {1: TermWeight(2.0, None), 2: TermWeight(3.0, None)})
    np.testing.assert_array_equal(plain, [3.0, 3.0, 2.0, np.nan])
    weights = {1: TermWeight(1.0, "balance"), 2: TermWeight(1.0, "balance")}
    np.testing.assert_array_equal(without_weights(log, "mask/p3", weights), [6.0, 2.0, 2.0, np.nan])
    unknown = without_weights(log, "mask/p3", {1: TermWeight(1.0, "T2.balance")})
    assert np.isnan(unknown).all()


def test_terms_with_and_without_weight(make_run, distill_config, tmp_path):
    record = read_run(make_run())
    config = distill_config(tmp_path, loss={"name": "dfmsd", "weight": 0.5})
    sections = training_sections(record, config, "")
    assert [section.title for section in sections] == [
        "Losses",
        "Losses without weights",
        "Correlation with the teacher",
    ]
    assert "mask × 0.5; sfa × 0.5." in sections[1].notes[0]
    shown = figures(sections)
    assert set(shown["mask/p3"].traces[0]["y"]) == {0.5, None}
    assert set(shown["mask/p3 without weight"].traces[0]["y"]) == {1.0, None}
    assert "task/classification without weight" not in shown


def test_unit_weights_are_not_plotted_twice(make_run, distill_config, tmp_path):
    sections = training_sections(read_run(make_run()), distill_config(tmp_path), "")
    assert sections[1].title == "Losses without weights"
    assert sections[1].figures == ()
    assert "also show the terms without weights" in sections[1].notes[1]


def test_no_weights_without_config(make_run):
    assert [section.title for section in training_sections(read_run(make_run()), None, "")] == [
        "Losses",
        "Correlation with the teacher",
    ]


@pytest.mark.parametrize("stages", [(1, 1), (2, 1), (2, 2)])
def test_stage_boundaries_lie_between_epochs(make_run, stages):
    records = {str(n): read_run(make_run(f"run{n}", stages=count)) for n, count in enumerate(stages)}
    marks = [shape["x0"] for shape in precision_section(records, ["AP"]).figures[0].layout["shapes"]]
    assert marks == ([] if stages == (1, 1) else [2.5])


def test_runs_with_different_stages_have_no_boundaries(make_run):
    records = {"a": read_run(make_run("a", stages=2)), "b": read_run(make_run("b", stages=3))}
    assert precision_section(records, ["AP"]).figures[0].layout["shapes"] == []


def test_weights_per_stage(make_run, distill_config, tmp_path, tiny_teachers):
    stages = [
        StageConfig(epochs=2, teacher=tiny_teachers[0]),
        StageConfig(epochs=2, teacher=tiny_teachers[1], loss={"weight": 4.0}),
    ]
    sections = training_sections(read_run(make_run()), distill_config(tmp_path, stages=stages), "")
    assert "mask × 1 (stage 1), 4 (stage 2)" in sections[1].notes[0]


def test_term_whose_balance_was_not_logged_is_not_plotted(make_run, distill_config, tmp_path):
    sections = training_sections(read_run(make_run()), distill_config(tmp_path, balance=0.5), "")
    assert sections[1].title == "Losses without weights"
    assert sections[1].figures == []
    assert "mask × ?" in sections[1].notes[0]


def test_single_measurement_has_no_curve(make_run):
    run = make_run()
    (run / "epochs.csv").write_text("epoch,step,stage,AP\n0,3,1,\n1,6,1,0.2\n")
    section = precision_section({"run": read_run(run)}, ["AP"])
    assert section.figures == []
    assert section.notes == ["AP was measured only once, so there is no curve."]
