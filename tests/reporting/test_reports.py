from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest

from dfmsd.errors import DfmsdError
from dfmsd.reporting import comparison_report, run_report


class Page(HTMLParser):
    """Tags, references and texts of a page."""

    def __init__(self, path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.cells: list[list[str]] = []
        self.headings: list[str] = []
        self.captions: list[str] = []
        self.scripts: list[str] = []
        self.plots: list[dict] = []
        self.style = self.policy = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    @property
    def plotted(self) -> set[str]:
        """Titles, legends and the names of bars."""
        traces = [trace for plot in self.plots for trace in plot["traces"]]
        categories = [y for trace in traces if trace["type"] == "bar" for y in trace["y"]]
        return {*self.captions, *(trace["name"] for trace in traces), *categories}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}]
        if tag == "tr":
            self.cells.append([])
        self.kind = dict(attrs).get("type")
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]

    def handle_data(self, data):
        if self.tags and self.tags[-1] in {"td", "th"} and data.strip():
            self.cells[-1].append(data.strip())
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data.strip())
        if self.tags and self.tags[-1] == "figcaption" and data.strip():
            self.captions.append(data.strip())
        if self.lasttag == "style":
            self.style += data
        if self.lasttag == "script" and data.strip():
            if self.kind == "application/json":
                self.plots.append(json.loads(data))
            else:
                self.scripts.append(data)


def test_run_report_tells_the_metrics_in_percent(make_run):
    run = make_run()
    path = run_report(run)
    assert path == run / "report.html"
    page = Page(path)
    assert page.cells[0] == ["AP", "AP50", "AP75", "APs", "APm", "APl", "parameters", "epochs"]
    assert page.cells[1] == ["41.7", "62.3", "33.3", "–", "20.0", "50.0", "1,234,567", "4"]
    assert page.cells[3:5] == [["<script>alert(1)</script>", "71.2"], ["absent", "–"]]
    assert "2.9.9" in page.html
    assert "seed: 0" in page.html
    assert {"task/classification", "mask/p3", "sfa/p3", "p4", "AP50"} <= page.plotted


def test_a_distilled_run_alone_says_how_its_gain_is_found(make_run):
    run = make_run()
    alone, beside = (run_report(run, baseline=other).read_text(encoding="utf-8") for other in (None, make_run("other")))
    assert "--baseline" in alone
    assert "--baseline" not in beside
    assert "--baseline" not in run_report(make_run("bare", distils=False)).read_text(encoding="utf-8")


def test_a_run_of_a_comparison_is_named_by_its_method(make_run, tmp_path):
    (tmp_path / "pkd").mkdir()
    run = make_run("pkd/seed-0")
    assert "<title>Run pkd/seed-0</title>" in run_report(run).read_text(encoding="utf-8")


def test_names_cannot_become_markup(make_run):
    page = Page(run_report(make_run("<b>run")))
    assert "b" not in page.tags
    # the data of each plot, plotly.js and the page's own script; the browser runs no other, by their hashes
    plots = page.html.count("data-plot=")
    assert page.tags.count("script") == plots + 2
    assert page.html.count('type="application/json"') == plots
    assert page.policy.count("'sha256-") == 2
    assert "unsafe-inline" not in page.policy.split("script-src")[1]
    assert "&lt;script&gt;alert(1)" in page.html
    assert "&lt;/pre&gt;&lt;b&gt;bold" in page.html
    assert "alert(1)" not in "".join(page.scripts)
    # plotly takes tags for markup, too: it gets them as entities
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.plotted


def test_the_hashes_are_those_of_the_scripts(make_run):
    page = Page(run_report(make_run()))
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy


def test_the_page_needs_nothing_else(make_run, tmp_path):
    run = make_run()
    for path in (run_report(run), comparison_report(tmp_path / "report.html", {"distilled": run})):
        page = Page(path)
        assert page.references, "the list of sections refers to them"
        assert all(reference.startswith(("#", "data:")) for reference in page.references)
        assert not {"link", "iframe", "object"} & set(page.tags)
        assert "default-src 'none'" in page.policy  # so nothing is fetched, whatever the scripts would like
        assert "http" not in page.policy
        assert "@import" not in page.style
        assert "url(" not in page.style


def test_an_empty_run_folder_gives_an_honest_page(tmp_path):
    html = run_report(tmp_path).read_text(encoding="utf-8")
    for name in ("metrics.json", "epochs.csv", "log.csv", "config.yaml", "environment.json"):
        assert name in html
    assert "data-plot" not in html
    assert "<script" not in html  # nothing to draw, so there is no plotly.js either


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
    assert page.cells[:5] == [
        ["run", "AP", "AP50", "parameters", "epochs"],
        ["teacher_a", "50.0", "62.3", "1,234,567", "2"],
        ["teacher_b", "45.0", "62.3", "1,234,567", "2"],
        ["baseline", "30.0", "62.3", "1,234,567", "4"],
        ["distilled", "32.3", "62.3", "1,234,567", "4"],
    ]
    assert set(four_runs) <= page.plotted  # the legend of the AP curves


def test_comparison_shows_the_training_of_the_distilled_run_only(four_runs, tmp_path):
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert page.headings == [
        "Result",
        "Warnings",  # the config of these runs is none
        "Classes",
        "AP during training",
        "Losses (distilled)",
        "Correlation with the teacher (distilled)",
    ]


def test_comparison_tells_the_gain_and_its_limits(four_runs, tmp_path):
    html = comparison_report(tmp_path / "report.html", four_runs).read_text(encoding="utf-8")
    assert "has 32.3 AP, +2.3 against its baseline&#39;s 30.0." in html
    assert "several seeds" in html
    assert "not fair" not in html


def test_comparison_calls_unequal_budgets_unfair(four_runs, make_run, tmp_path):
    four_runs["baseline"] = make_run("short", ap=0.4, stages=1, distils=False)
    html = comparison_report(tmp_path / "report.html", four_runs).read_text(encoding="utf-8")
    assert "has 32.3 AP, -7.7 against its baseline&#39;s 40.0." in html
    assert "not fair" in html


def test_comparison_with_an_unfinished_run_says_which(four_runs, tmp_path):
    (four_runs["distilled"] / "metrics.json").unlink()
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert "distilled has no metrics.json yet." in page.html
    assert page.cells[4][:3] == ["distilled", "–", "–"]
    assert "against its baseline" not in page.html


def test_comparison_with_unmeasurable_metrics_shows_dashes(four_runs, tmp_path):
    metrics = {"AP": None, "AP50": None, "per_class": {"disc": None}}
    (four_runs["baseline"] / "metrics.json").write_text(json.dumps(metrics))
    page = Page(comparison_report(tmp_path / "report.html", four_runs))
    assert page.cells[3] == ["baseline", "–", "–", "1,234,567", "4"]
    assert "against its baseline" not in page.html


def test_validations_without_a_value_leave_the_curve_out(make_run):
    run = make_run()
    (run / "epochs.csv").write_text("epoch,step,stage,AP,AP50\n0,3,1,,\n1,6,1,0.2,\n")
    assert "AP50" not in Page(run_report(run)).plotted


def test_comparison_without_runs_is_refused(tmp_path):
    with pytest.raises(DfmsdError, match="no run to compare"):
        comparison_report(tmp_path / "report.html", {})
