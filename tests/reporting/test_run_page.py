from __future__ import annotations

import base64
import hashlib

from tests.helpers.pages import Page

from dfmsd.reporting import comparison_report, run_report


def test_metrics_in_percent(make_run):
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


def test_a_choice_between_last_and_averaged_weights_is_stated(make_run):
    run = make_run()
    (run / "epochs.csv").write_text("epoch,step,stage,AP\n0,3,1,0.2\n1,6,1,0.412\n")
    (run / "average_metrics.json").write_text('{"AP": 0.4174}')
    stated = "The last weights reach 41.2 AP, their average 41.7: their average was delivered"
    assert stated in Page(run_report(run)).html
    assert "their average" not in Page(run_report(make_run("last"))).html


def test_distilled_run_without_baseline_suggests_one(make_run):
    run = make_run()
    alone, beside = (run_report(run, baseline=other).read_text(encoding="utf-8") for other in (None, make_run("other")))
    assert "--baseline" in alone
    assert "--baseline" not in beside
    assert "--baseline" not in run_report(make_run("bare", distills=False)).read_text(encoding="utf-8")


def test_run_of_a_comparison_is_named_after_its_method(make_run, tmp_path):
    (tmp_path / "pkd").mkdir()
    run = make_run("pkd/seed-0")
    assert "<title>Run pkd/seed-0</title>" in run_report(run).read_text(encoding="utf-8")


def test_names_are_escaped(make_run):
    page = Page(run_report(make_run("<b>run")))
    assert "b" not in page.tags
    # the data of each plot, plotly.js and the page's own script; the policy allows no other
    plots = page.html.count("data-plot=")
    assert page.tags.count("script") == plots + 2
    assert page.html.count('type="application/json"') == plots
    assert page.policy.count("'sha256-") == 2
    assert "unsafe-inline" not in page.policy.split("script-src")[1]
    assert "&lt;script&gt;alert(1)" in page.html
    assert "&lt;/pre&gt;&lt;b&gt;bold" in page.html
    assert "alert(1)" not in "".join(page.scripts)
    # plotly also interprets tags, so they are passed as entities
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.plotted


def test_policy_contains_script_hashes(make_run):
    page = Page(run_report(make_run()))
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy


def test_page_is_self_contained(make_run, tmp_path):
    run = make_run()
    for path in (run_report(run), comparison_report(tmp_path / "report.html", {"distilled": run})):
        page = Page(path)
        assert page.references, "the list of sections has links"
        assert all(reference.startswith(("#", "data:")) for reference in page.references)
        assert not {"link", "iframe", "object"} & set(page.tags)
        assert "default-src 'none'" in page.policy  # so nothing is fetched
        assert "http" not in page.policy
        assert "@import" not in page.style
        assert "url(" not in page.style


def test_empty_run_folder_names_missing_files(tmp_path):
    html = run_report(tmp_path).read_text(encoding="utf-8")
    for name in ("metrics.json", "epochs.csv", "log.csv", "config.yaml", "environment.json"):
        assert name in html
    assert "data-plot" not in html
    assert "<script" not in html  # no plots, so no plotly.js either


def test_divergence(make_run):
    run = make_run()
    (run / "log.csv").write_text("step,epoch,stage,loss\n0,0,1,2.0\n1,0,1,nan\n")
    assert "loss was not finite in 1 of 2 steps." in run_report(run).read_text(encoding="utf-8")


def test_missing_correlation_is_stated(make_run):
    run = make_run()
    (run / "log.csv").write_text("step,epoch,stage,loss,mask/p3\n0,0,1,2.0,1.0\n")
    assert "was not logged" in run_report(run).read_text(encoding="utf-8")


def test_metric_without_values_has_no_curve(make_run):
    run = make_run()
    (run / "epochs.csv").write_text("epoch,step,stage,AP,AP50\n0,3,1,,\n1,6,1,0.2,\n")
    assert "AP50" not in Page(run_report(run)).plotted
