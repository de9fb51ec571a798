from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.helpers.fixtures import STUDENT

from dfmsd import reporting
from dfmsd.cli import main as cli
from dfmsd.comparison.results import PairResults, write_results
from dfmsd.detectors import build_detector, load_detector, save_detector
from dfmsd.detectors.classnames import with_names
from dfmsd.distillation.stages import StageConfig
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.reporting import analysis, galleries
from dfmsd.reporting.records import read_run
from dfmsd.reporting.runconfig import run_config
from dfmsd.reporting.writer import _analyze, report


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """A folder with a distilled run and its baseline."""
    folder = tmp_path_factory.mktemp("runs")
    for name, bare in (("distilled", False), ("baseline", True)):
        shutil.copytree(finished_run(name, no_distill=bare), folder / name)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(galleries, "IMAGES_PER_KIND", 1)
    monkeypatch.setattr(galleries, "IMAGES_WITH_MASKS", 0)
    costs = analysis.inference_costs
    monkeypatch.setattr(analysis, "inference_costs", lambda detectors, batch: costs(detectors, batch, 0.01))


def headings(html):
    return re.findall(r"<h2 id=\"s\d+\">(.*?)</h2>", html)


def test_full_report_of_a_run(runs, tiny_teachers, monkeypatch):
    monkeypatch.setattr(galleries, "IMAGES_WITH_MASKS", 1)
    path = report(runs / "distilled", runs / "baseline", [], 3)
    html = path.read_text(encoding="utf-8")
    assert path == runs / "distilled" / "report.html"
    assert {"Results", "Levels", "Images", "Masks and attention", "Config"} <= set(headings(html))
    cells = re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td>", html)
    assert [name for name, _ in cells[:4]] == [*tiny_teachers, "baseline", "distilled"]
    header = re.search(r"<thead><tr>(.*?)</tr>", html)[1]
    assert all(f">{name}<" in header for name in ("GFLOPs", "CPU ms", "file, MB"))
    assert html.split("<script>")[0].count("data:image/png;base64") == 2  # one per stage
    for who in ("ground truth", "student", "baseline", "fcos", "faster_rcnn"):
        assert f"<figcaption>{who}: " in html
    assert {"square", "disc"} <= set(re.findall(r"<text class=\"tag\".*?>(.*?)</text>", html))
    assert html.count('alt=""') == html.count('aria-label=""') == 0


def test_masks_prefer_images_with_objects(monkeypatch):
    monkeypatch.setattr(galleries, "IMAGES_WITH_MASKS", 3)
    samples = [SimpleNamespace(target={"boxes": torch.zeros(count, 4)}) for count in (0, 2, 0, 1)]
    assert galleries.images_with_objects(samples) == [1, 3, 0]


def test_progress_is_not_standard_output(runs, capsys):
    report(runs / "distilled", None, (), 1)
    assert capsys.readouterr().out == ""


def test_analysis_agrees_with_evaluation(runs, tiny_teachers):
    run = runs / "distilled"
    config = run_config(read_run(run))
    detectors = {"student": load_detector(run), tiny_teachers[1]: load_detector(tiny_teachers[1])}
    result = analysis.analyze(config, run, detectors, 100)
    assert (result.images, result.whole) == (4, True)
    data = analysis.CocoDataModule(config.data).val
    for name, detector in detectors.items():
        assert result.metrics[name] == evaluate(detector, data, batch_size=1)
        assert result.costs[name].flops > 0
        assert result.costs[name].latency > 0


def test_classes_of_a_teacher_have_the_names_of_the_data(finished_run, tmp_path):
    foreign = str(tmp_path / "foreign")
    save_detector(build_detector(STUDENT, ["box", "disc"]), foreign)
    stages = [StageConfig(1, foreign)]
    run = finished_run("renamed", stages=stages, teacher_classes={"box": "square"})
    found = _analyze(run, None, (), 100).metrics[foreign]
    assert found["per_class"]["square"] is not None
    renamed = with_names(load_detector(foreign), {"box": "square"})
    assert found == evaluate(renamed, analysis.CocoDataModule(run_config(read_run(run)).data).val, batch_size=1)


def test_teachers_are_analyzed_at_the_size_that_they_see(runs, tiny_teachers):
    run, name = runs / "distilled", tiny_teachers[1]
    config = replace(run_config(read_run(run)), teacher_size=160)
    detectors = {"student": load_detector(run), name: load_detector(name)}
    result, plain = (
        analysis.analyze(each, run, detectors, 100) for each in (config, replace(config, teacher_size=None))
    )
    sizes = {"student": 64, name: 160}
    for each, detector in detectors.items():
        seen = analysis.CocoDataModule(replace(config.data, image_size=sizes[each])).val
        assert result.metrics[each] == evaluate(detector, seen, batch_size=1)
    assert result.costs["student"].flops == plain.costs["student"].flops
    assert result.costs[name].flops > 1.5 * plain.costs[name].flops  # its box head costs the same


def test_matches_of_a_teacher_are_in_pixels_of_the_student(runs, tmp_path, monkeypatch):
    """Detections that are the larger image's boxes are all correct."""
    run = runs / "distilled"
    data = analysis.CocoDataModule(replace(run_config(read_run(run)).data, image_size=160)).val
    teacher = load_detector(run)
    samples = iter([data[index] for index in range(len(data))])

    def perfect(images, sizes):
        target = next(samples).target
        return [{**target, "scores": torch.ones(len(target["labels"]))}]

    monkeypatch.setattr(teacher, "detect", perfect)
    small = analysis.CocoDataModule(run_config(read_run(run)).data).val
    matches, metrics = analysis._match_all("teacher", teacher, data, [small[index] for index in range(len(small))])
    assert metrics["AP"] == pytest.approx(1, abs=1e-3)
    assert all(image.true_positives == image.objects > 0 for image in matches)


def test_report_of_a_folder_of_runs(runs):
    html = report(runs, None, [], 2).read_text(encoding="utf-8")
    assert (runs / "report.html").is_file()
    assert "The distilled student reaches 25.0 AP, 0.0 above the baseline (25.0)." in html
    assert {"Classes", "Images", "Masks and attention"} <= set(headings(html))


def test_missing_teachers_and_data_are_left_out(runs, tmp_path, caplog):
    run = shutil.copytree(runs / "distilled", tmp_path / "old")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"teacher: .*faster_rcnn", "teacher: runs/gone", text))
    html = report(run, None, [], 1).read_text(encoding="utf-8")
    assert "Not analyzed: no detector at &#39;runs/gone&#39;" in html
    assert "Images" in headings(html)
    assert "runs/gone" in caplog.text
    (run / "config.yaml").write_text(re.sub(r"root: .*", "root: /gone", text))
    html = report(run, None, [], 1).read_text(encoding="utf-8")
    assert "Not analyzed: data.root: no folder /gone" in html
    assert "Images" not in headings(html)
    (run / "student.safetensors").unlink()
    assert "has no student.safetensors" in report(run, None, [], 1).read_text(encoding="utf-8")
    (run / "config.yaml").write_text("version: 0\n")
    assert "cannot read its config.yaml" in report(run, None, [], 1).read_text(encoding="utf-8")
    assert "unknown key version" in caplog.text


def test_arguments_must_exist(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        (
            (runs / "distilled", tmp_path / "gone", [], 1),
            f"`baseline`: no run folder at {tmp_path}/gone; there are {runs}/baseline, {runs}/distilled",
        ),
        ((runs / "distilled", None, ["runs/typo"], 1), "runs/typo"),
        ((runs / "distilled", None, [], 0), "images must be at least 1, got 0"),
        ((runs / "gone", None, [], 1), f"no run folder at {runs}/gone; there are {runs}/baseline, {runs}/distilled"),
        ((tmp_path / "empty", None, [], 1), "is neither a run folder nor a folder of runs"),
        ((runs, runs / "baseline", [], 1), "is not a run folder"),
    ]
    for arguments, message in cases:
        with pytest.raises(DfmsdError, match=re.escape(message)) as caught:
            report(*arguments)
        assert "\n" not in str(caught.value)


def test_ap_of_a_teacher_on_other_images_is_ignored(finished_run, runs, tmp_path):
    """Its AP was measured on another data set, so it is measured again."""
    teacher = finished_run("elsewhere", no_distill=True)
    html = report(runs / "distilled", None, [str(teacher)], 1).read_text(encoding="utf-8")
    row = rf"<th scope=\"row\">{re.escape(str(teacher))}</th><td>(.*?)</td>"
    assert re.search(row, html)[1] == "25.0"  # same images: AP of the folder
    text = (teacher / "config.yaml").read_text()
    (teacher / "config.yaml").write_text(text.replace("image_size: 64", "image_size: 96"))
    html = report(runs / "distilled", None, [str(teacher)], 1).read_text(encoding="utf-8")
    assert re.search(row, html)[1] != "25.0"
    shown = shutil.copytree(runs / "distilled", tmp_path / "shown")
    text = (shown / "config.yaml").read_text()
    (shown / "config.yaml").write_text(text.replace("teacher_size: null", "teacher_size: 96"))
    assert re.search(row, report(shown, None, [str(teacher)], 1).read_text(encoding="utf-8"))[1] == "25.0"
    assert "covers only the first 1 validation images" in html
    assert json.loads((teacher / "metrics.json").read_text())["AP"] == 0.25


def test_command_accepts_runs_and_comparisons(runs, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(reporting, "report", lambda *arguments: asked.append(arguments) or "page")
    cli.run(["report", str(runs / "distilled"), "--baseline", str(runs / "baseline"), "--teacher", "a", "b"])
    cli.run(["report", str(runs), "--images", "7"])
    assert asked == [(runs / "distilled", runs / "baseline", ["a", "b"], 200), (runs, None, [], 7)]
    write_results(PairResults("pair", {}), tmp_path / "pair")
    cli.run(["report", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == ["page", "page", str(tmp_path / "pair" / "report.html")]
    assert len(asked) == 2
