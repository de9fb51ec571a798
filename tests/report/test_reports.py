from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from dfmsd.errors import DfmsdError
from dfmsd.report import comparison_report, run_report


class Page(HTMLParser):
    """Tags, references and texts of a page."""

    def __init__(self, path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.cells: list[list[str]] = []
        self.headings: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}]
        if tag == "tr":
            self.cells.append([])

    def handle_data(self, data):
        if self.tags and self.tags[-1] in {"td", "th"} and data.strip():
            self.cells[-1].append(data.strip())
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data.strip())


def test_run_report_tells_the_metrics_in_percent(make_run):
    run = make_run()
    path = run_report(run)
    assert path == run / "report.html"
    page = Page(path)
    assert page.cells[0] == ["AP", "AP50", "AP75", "APs", "APm", "APl", "parameters", "epochs"]
    assert page.cells[1] == ["41.7", "62.3", "33.3", "–", "20.0", "50.0", "1,234,567", "4"]
    assert page.cells[3:] == [["<script>alert(1)</script>", "71.2"], ["absent", "–"]]
    assert "2.9.9" in page.html
    assert "seed: 0" in page.html
    for label in ("task/classification", "mask/p3", "sfa/p3", "p4", "AP50"):
        assert f">{label}</text>" in page.html


def test_names_cannot_become_markup(make_run):
    page = Page(run_report(make_run("<b>run")))
    assert not {"script", "b"} & set(page.tags)
    assert "&lt;script&gt;alert(1)" in page.html
    assert "&lt;/pre&gt;&lt;b&gt;bold" in page.html


def test_the_page_needs_nothing_else(make_run, tmp_path):
    run = make_run()
    for path in (run_report(run), comparison_report(tmp_path / "report.html", {"distilled": run})):
        page = Page(path)
        assert page.references, "the curves refer to their own clip paths and markers"
        assert all(reference.startswith("#") for reference in page.references)
        assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
        assert "@import" not in page.html
        assert page.html.count("url(") == page.html.count("url(#")


def test_an_empty_run_folder_gives_an_honest_page(tmp_path):
    html = run_report(tmp_path).read_text(encoding="utf-8")
    for name in ("metrics.json", "epochs.csv", "log.csv", "config.yaml", "environment.json"):
        assert name in html
    assert "<svg" not in html


def test_divergence_is_told(make_run):
    run = make_run()
    (run / "log.csv").write_text("step,epoch,stage,loss\n0,0,1,2.0\n1,0,1,nan\n")
    assert "loss was not finite in 1 of 2 steps." in run_report(run).read_text(encoding="utf-8")


def test_a_distillation_without_logged_correlation_says_so(make_run):
    run = make_run()
    (run / "log.csv").write_text("step,epoch,stage,loss,mask/p3\n0,0,1,2.0,1.0\n")
    assert "was not logged" in run_report(run).read_text(encoding="utf-8")


@pytest.fixture
def four_runs(make_run):
    return {
        "teacher_a": make_run("teacher_a", ap=0.5, stages=1, distils=False),
        "teacher_b": make_run("teacher_b", ap=0.45, stages=1, distils=False),
        "baseline": make_run("baseline", ap=0.3, distils=False),
        "distilled": make_run("distilled", ap=0.323),
    }


def test_comparison_lists_the_runs_in_the_given_order(four_runs, tmp_path):
    page = Page(comparison_report(tmp_path / "new" / "report.html", four_runs))
    assert page.cells == [
        ["run", "AP", "AP50", "parameters", "epochs"],
        ["teacher_a", "50.0", "62.3", "1,234,567", "2"],
        ["teacher_b", "45.0", "62.3", "1,234,567", "2"],
        ["baseline", "30.0", "62.3", "1,234,567", "4"],
        ["distilled", "32.3", "62.3", "1,234,567", "4"],
    ]
    assert all(f">{name}</text>" in page.html for name in four_runs)  # the legend of the AP curves


def test_comparison_shows_the_training_of_the_distilled_run_only(four_runs, tmp_path):
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert page.headings == [
        "Result",
        "AP during training",
        "Losses (distilled)",
        "Correlation with the teacher (distilled)",
    ]


def test_comparison_tells_the_gain_and_its_limits(four_runs, tmp_path):
    html = comparison_report(tmp_path / "report.html", four_runs).read_text(encoding="utf-8")
    assert "has +2.3 AP against the baseline" in html
    assert "several seeds" in html
    assert "not fair" not in html


def test_comparison_calls_unequal_budgets_unfair(four_runs, make_run, tmp_path):
    four_runs["baseline"] = make_run("short", ap=0.4, stages=1, distils=False)
    html = comparison_report(tmp_path / "report.html", four_runs).read_text(encoding="utf-8")
    assert "has -7.7 AP against the baseline" in html
    assert "not fair" in html


def test_comparison_with_an_unfinished_run_says_which(four_runs, tmp_path):
    (four_runs["distilled"] / "metrics.json").unlink()
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert "distilled has no metrics.json yet." in page.html
    assert page.cells[4][:3] == ["distilled", "–", "–"]
    assert "against the baseline" not in page.html


def test_comparison_with_unmeasurable_metrics_shows_dashes(four_runs, tmp_path):
    metrics = {"AP": None, "AP50": None, "per_class": {"disc": None}}
    (four_runs["baseline"] / "metrics.json").write_text(json.dumps(metrics))
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert page.cells[3] == ["baseline", "–", "–", "1,234,567", "4"]
    assert "against the baseline" not in page.html


def test_validations_without_a_value_leave_the_curve_out(make_run):
    run = make_run()
    (run / "epochs.csv").write_text("epoch,step,stage,AP,AP50\n0,3,1,,\n1,6,1,0.2,\n")
    assert "<svg" in run_report(run).read_text(encoding="utf-8")


def test_comparison_without_runs_is_refused(tmp_path):
    with pytest.raises(DfmsdError, match="no run to compare"):
        comparison_report(tmp_path / "report.html", {})
