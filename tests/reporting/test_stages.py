"""The section on a run's stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.helpers.pages import Page

from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.near import expand
from dfmsd.engine.saved_config import write_config
from dfmsd.reporting import run_report
from dfmsd.reporting.records import read_run
from dfmsd.reporting.stages import stages_sections

FIT = {
    "p3": {"before": 0.012, "after": 0.456, "reference": "former"},
    "p4": {"before": -0.004, "after": 0.5, "reference": "former"},
}


def test_the_plan_says_in_whose_channels_each_teacher_is_imitated(make_run, distill_config, tmp_path):
    stages = [
        StageConfig(3, "runs/a", basis="student"),
        StageConfig(6, "runs/b", basis="former"),
        StageConfig(1, ["runs/a", "runs/b"], labels=False),
        StageConfig(2),
    ]
    run = make_run()
    [section] = stages_sections(distill_config(tmp_path, stages=stages), read_run(run))
    assert section.table is not None
    assert section.table.rows == [
        ("1", "3", "runs/a", "the student"),
        ("2", "6", "runs/b", "stage 1"),
        ("3", "1", "runs/a & runs/b, without labels", "the teacher"),
        ("4", "2", "none", "–"),
    ]
    [plan] = section.figures
    assert plan.traces[0]["base"] == [0, 3, 9, 10]
    assert plan.traces[0]["x"] == [3, 6, 1, 2]
    assert plan.traces[0]["y"][1:] == [
        "2: b<br>in the channels of stage 1",
        "3: a &amp; b, without labels",
        "4: labels alone",
    ]
    assert "2: b in the channels of stage 1 until epoch 9" in plan.alt
    assert "The rotation of stage 2 has not been fitted yet." in section.notes


def test_the_correlations_of_a_rotation_are_shown(make_run, distill_config, tmp_path):
    run = make_run()
    stages = [StageConfig(3, "runs/<b>a"), StageConfig(6, "runs/b", basis="former")]
    write_config(distill_config(run, stages=stages), run)
    (run / "basis.json").write_text(json.dumps({"2": FIT}))
    page = Page(run_report(run))
    assert "has not been fitted" not in page.html
    assert "b" not in page.tags
    assert {"before", "after"} <= page.plotted
    [section] = stages_sections(distill_config(run, stages=stages), read_run(run))
    assert section.figures[1].values is not None
    assert section.figures[1].values.rows == [("p3", "0.01", "0.46"), ("p4", "0.00", "0.50")]


def test_a_single_stage_needs_no_plan_unless_it_is_rotated(make_run, distill_config, tmp_path):
    record, config = read_run(make_run()), distill_config(tmp_path, stages=[StageConfig(3, "runs/a")])
    assert stages_sections(config, record) == []
    assert stages_sections(None, record) == []
    assert stages_sections(config.without_teachers(), record) == []
    assert len(stages_sections(replace(config, stages=[StageConfig(3, "runs/a", basis="student")]), record)) == 1


def test_an_automatic_basis_is_the_one_that_was_fitted(make_run, distill_config, tmp_path):
    run = make_run()
    stages = [StageConfig(3, "runs/a"), StageConfig(6, ["runs/a", "runs/b"])]
    config = distill_config(tmp_path, stages=stages)
    fit = {"T2.p3": {"before": 0.0, "after": 0.5, "reference": "student"}}
    (run / "basis.json").write_text(json.dumps({"2": fit}))
    [section] = stages_sections(config, read_run(run))
    assert section.table is not None
    assert [row[3] for row in section.table.rows] == ["the teacher", "the teacher & the student"]


def test_a_near_teacher_is_shown_before_the_stages(make_run, distill_config, tmp_path):
    near = NearConfig(backbone="resnet18", epochs=5, out=str(tmp_path / "near"), bridge=True)
    strong = tmp_path / "strong"
    config = distill_config(tmp_path / "run", stages=[StageConfig(9, str(strong), near=near)])
    config, recipes = expand(config)
    for recipe in (TrainConfig(out=str(strong), epochs=12), *recipes.values()):
        Path(recipe.out).mkdir()
        write_config(recipe, Path(recipe.out))
    run = make_run("other")
    fit = {"T2.p3": {"before": 0.0, "after": 0.5, "reference": "former"}}
    (run / "basis.json").write_text(json.dumps({"2": fit}))
    [section] = stages_sections(config, read_run(run))
    assert section.table is not None
    assert section.table.rows == [
        ("strong", "12", "none", "–"),
        ("near", "5", str(strong), "–"),
        ("1", "3", str(tmp_path / "near"), "the teacher"),
        ("2", "6", str(strong), "stage 1"),
    ]
    plan = section.figures[0]
    assert plan.traces[0]["base"] == [0, 0, 0, 3]
    assert plan.traces[0]["x"] == [12, 5, 3, 6]
    assert "strong by labels alone until epoch 12; near by " in plan.alt


def test_runs_that_name_each_other_end(make_run, distill_config, tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        config = distill_config(tmp_path / name, stages=[StageConfig(1, str(tmp_path / other)), StageConfig(1)])
        write_config(config, tmp_path / name)
    [section] = stages_sections(config, read_run(make_run()))
    assert section.table is not None
    assert [row[0] for row in section.table.rows] == ["b", "a", "1", "2"]
