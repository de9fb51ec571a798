from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from dfmsd.cli import main as cli
from dfmsd.comparison.results import PairResults, write_results
from dfmsd.detectors import load_detector
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.reporting import examine as examining
from dfmsd.reporting import rewrite as rewriting
from dfmsd.reporting.plan import read_plan
from dfmsd.reporting.records import read_run
from dfmsd.reporting.rewrite import rewrite_report


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """A folder with a distilled run and its baseline."""
    folder = tmp_path_factory.mktemp("runs")
    for name, bare in (("distilled", False), ("baseline", True)):
        shutil.copytree(finished_run(name, no_distill=bare), folder / name)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(examining, "SHOWN", 1)
    monkeypatch.setattr(examining, "LOOKED_INTO", 0)
    costs = examining.detection_costs
    monkeypatch.setattr(examining, "detection_costs", lambda detectors, batch: costs(detectors, batch, 0.01))


def headings(html):
    return re.findall(r"<h2 id=\"s\d+\">(.*?)</h2>", html)


def test_the_whole_report_of_a_run(runs, tiny_teachers, monkeypatch):
    monkeypatch.setattr(examining, "LOOKED_INTO", 1)
    path = rewrite_report(runs / "distilled", runs / "baseline", [], 3)
    html = path.read_text(encoding="utf-8")
    assert path == runs / "distilled" / "report.html"
    assert {"Result", "Levels", "Images", "Masks and attention", "Config"} <= set(headings(html))
    cells = re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td>", html)
    assert [name for name, _ in cells[:4]] == [*tiny_teachers, "baseline", "distilled"]
    header = re.search(r"<thead><tr>(.*?)</tr>", html)[1]
    assert all(f">{name}<" in header for name in ("GFLOPs", "CPU ms", "file, MB"))
    assert html.split("<script>")[0].count("data:image/png;base64") == 2  # a stage each
    for who in ("the truth", "student", "baseline", "fcos", "faster_rcnn"):
        assert f"<figcaption>{who}: " in html
    assert {"square", "disc"} <= set(re.findall(r"<text class=\"tag\".*?>(.*?)</text>", html))
    assert html.count('alt=""') == html.count('aria-label=""') == 0


def test_masks_are_shown_of_images_with_objects(monkeypatch):
    monkeypatch.setattr(examining, "LOOKED_INTO", 3)
    samples = [SimpleNamespace(target={"boxes": torch.zeros(count, 4)}) for count in (0, 2, 0, 1)]
    assert examining.telling(samples) == [1, 3, 0]


def test_what_is_measured_is_what_evaluation_measures(runs, tiny_teachers):
    run = runs / "distilled"
    plan = read_plan(read_run(run))
    detectors = {"student": load_detector(run), tiny_teachers[1]: load_detector(tiny_teachers[1])}
    found = examining.examine(plan, run, detectors, 100)
    assert (found.images, found.whole) == (4, True)
    data = examining.CocoDataModule(plan.data).val
    for name, detector in detectors.items():
        assert found.metrics[name] == evaluate(detector, data, batch_size=1)
        assert found.costs[name].flops > 0
        assert found.costs[name].latency > 0


def test_the_report_of_a_folder_of_runs(runs):
    html = rewrite_report(runs, None, [], 2).read_text(encoding="utf-8")
    assert (runs / "report.html").is_file()
    assert "The distilled student has 25.0 AP, +0.0 against its baseline&#39;s 25.0." in html
    assert {"Classes", "Images", "Masks and attention"} <= set(headings(html))


def test_what_is_gone_is_told_and_left_out(runs, tmp_path, caplog):
    run = shutil.copytree(runs / "distilled", tmp_path / "old")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"teacher: .*faster_rcnn", "teacher: runs/gone", text))
    html = rewrite_report(run, None, [], 1).read_text(encoding="utf-8")
    assert "Not looked at: no detector at &#39;runs/gone&#39;" in html
    assert "Images" in headings(html)
    assert "runs/gone" in caplog.text
    (run / "config.yaml").write_text(re.sub(r"root: .*", "root: /gone", text))
    html = rewrite_report(run, None, [], 1).read_text(encoding="utf-8")
    assert "Not looked at: data.root: no folder /gone" in html
    assert "Images" not in headings(html)
    (run / "student.safetensors").unlink()
    assert "holds no student.safetensors" in rewrite_report(run, None, [], 1).read_text(encoding="utf-8")
    (run / "config.yaml").write_text("version: 0\n")
    assert "cannot be read by this version" in rewrite_report(run, None, [], 1).read_text(encoding="utf-8")


def test_what_the_user_names_must_be_there(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        ((runs / "distilled", tmp_path / "gone", [], 1), "gone"),
        ((runs / "distilled", None, ["runs/typo"], 1), "runs/typo"),
        ((runs / "distilled", None, [], 0), "images: 0 is below 1"),
        ((tmp_path / "gone", None, [], 1), "no folder"),
        ((tmp_path / "empty", None, [], 1), "neither a run nor folders of runs"),
        ((runs, runs / "baseline", [], 1), "is no run folder"),
    ]
    for arguments, message in cases:
        with pytest.raises(DfmsdError, match=re.escape(message)) as caught:
            rewrite_report(*arguments)
        assert "\n" not in str(caught.value)


def test_a_teacher_of_other_images_has_no_ap(finished_run, runs, tmp_path):
    """Its folder's AP is of another data set; what is shown was measured here."""
    teacher = finished_run("elsewhere", no_distill=True)
    html = rewrite_report(runs / "distilled", None, [str(teacher)], 1).read_text(encoding="utf-8")
    row = rf"<th scope=\"row\">{re.escape(str(teacher))}</th><td>(.*?)</td>"
    assert re.search(row, html)[1] == "25.0"  # the same images: that of the folder
    text = (teacher / "config.yaml").read_text()
    (teacher / "config.yaml").write_text(text.replace("image_size: 64", "image_size: 96"))
    html = rewrite_report(runs / "distilled", None, [str(teacher)], 1).read_text(encoding="utf-8")
    assert re.search(row, html)[1] != "25.0"
    assert "is of the first 1 validation images only" in html
    assert json.loads((teacher / "metrics.json").read_text())["AP"] == 0.25


def test_the_command_takes_runs_and_comparisons(runs, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(rewriting, "rewrite_report", lambda *arguments: asked.append(arguments) or "page")
    cli.run(["report", str(runs / "distilled"), "--baseline", str(runs / "baseline"), "--teacher", "a", "b"])
    cli.run(["report", str(runs), "--images", "7"])
    assert asked == [(runs / "distilled", runs / "baseline", ["a", "b"], 200), (runs, None, [], 7)]
    write_results(PairResults("pair", {}), tmp_path / "pair")
    cli.run(["report", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == ["page", "page", str(tmp_path / "pair" / "report.html")]
    assert len(asked) == 2
