from __future__ import annotations

import json

import pytest
from tests.helpers.pages import Page

from dfmsd.errors import DfmsdError
from dfmsd.reporting import comparison_report


@pytest.fixture
def four_runs(make_run):
    return {
        "teacher_a": make_run("teacher_a", ap=0.5, stages=1, distills=False),
        "teacher_b": make_run("teacher_b", ap=0.45, stages=1, distills=False),
        "baseline": make_run("baseline", ap=0.3, distills=False),
        "distilled": make_run("distilled", ap=0.323),
    }


def test_runs_are_listed_in_the_given_order(four_runs, tmp_path):
    page = Page(comparison_report(tmp_path / "new" / "report.html", four_runs))
    assert page.cells[:5] == [
        ["run", "AP", "AP50", "parameters", "epochs"],
        ["teacher_a", "50.0", "62.3", "1,234,567", "2"],
        ["teacher_b", "45.0", "62.3", "1,234,567", "2"],
        ["baseline", "30.0", "62.3", "1,234,567", "4"],
        ["distilled", "32.3", "62.3", "1,234,567", "4"],
    ]
    assert set(four_runs) <= page.plotted  # the legend of the AP curves


def test_only_distilled_run_shows_training(four_runs, tmp_path):
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert page.headings == [
        "Results",
        "Warnings",  # the configs of these runs cannot be read
        "Classes",
        "AP during training",
        "Losses (distilled)",
        "Correlation with the teacher (distilled)",
    ]


def test_gain_and_its_limits(four_runs, tmp_path):
    html = comparison_report(tmp_path / "report.html", four_runs).read_text(encoding="utf-8")
    assert "reaches 32.3 AP, 2.3 above the baseline (30.0)." in html
    assert "several seeds" in html
    assert "not fair" not in html


def test_different_epochs_are_unfair(four_runs, make_run, tmp_path):
    four_runs["baseline"] = make_run("short", ap=0.4, stages=1, distills=False)
    html = comparison_report(tmp_path / "report.html", four_runs).read_text(encoding="utf-8")
    assert "reaches 32.3 AP, 7.7 below the baseline (40.0)." in html
    assert "not fair" in html


def test_unfinished_run_is_named(four_runs, tmp_path):
    (four_runs["distilled"] / "metrics.json").unlink()
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert "distilled has no metrics.json yet." in page.html
    assert page.cells[4][:3] == ["distilled", "–", "–"]
    assert "above the baseline" not in page.html


def test_undefined_metrics_are_dashes(four_runs, tmp_path):
    metrics = {"AP": None, "AP50": None, "per_class": {"disc": None}}
    (four_runs["baseline"] / "metrics.json").write_text(json.dumps(metrics))
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert page.cells[3] == ["baseline", "–", "–", "1,234,567", "4"]
    assert "above the baseline" not in page.html


def test_comparison_without_runs_is_rejected(tmp_path):
    with pytest.raises(DfmsdError, match="no runs to compare"):
        comparison_report(tmp_path / "report.html", {})
