from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from dfmsd.comparison import page
from dfmsd.comparison.page import gains_figure, result_sections
from dfmsd.comparison.results import PairResults, Row, read_results, write_results
from dfmsd.comparison.tables import rewrite_tables, write_tables
from dfmsd.errors import DfmsdError
from dfmsd.reporting.page import Table

GROUPS = ["Classes", "Object sizes"]
TABLE = Table(("method",), [("none",)])


def make_row(folder: Path, method: str, seed: int, ap: float, epochs: int = 2) -> Row:
    """A row and its run folder."""
    run = folder / f"{method}-{seed}"
    run.mkdir()
    classes = {"fish": ap, "shark": 3 * ap, "ray": None}
    metrics = {"AP": ap, "APs": ap, "APm": 2 * ap, "APl": -1, "per_class": classes}
    (run / "metrics.json").write_text(json.dumps(metrics))
    with (run / "epochs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("epoch", "step", "stage", "AP"))
        table.writerows((epoch, epoch, 1, ap * (epoch + 1) / epochs) for epoch in range(epochs))
    return Row(method, seed, epochs, ap, None, None, 1.0, 1.0, False, str(run))


@pytest.fixture
def results(tmp_path: Path) -> PairResults:
    gains = {"none": 0.0, "pkd": 0.02, "mgd[<b>=1]": -0.01}
    rows = [
        make_row(tmp_path, name, seed, 0.1 + seed / 100 + gain * (seed + 1))
        for name, gain in gains.items()
        for seed in range(3)
    ]
    return PairResults("pair", {"teacher": 0.5}, rows, failed={"cwd, seed 0": "diverged"})


def test_page_has_gains_curves_sizes_and_failures(results: PairResults, tmp_path: Path) -> None:
    sections = {section.title: section for section in result_sections(results, TABLE, [], tmp_path)}
    assert list(sections) == ["Methods", "Warnings", "Gain over the baseline", "AP during training", *GROUPS]
    assert sections["Warnings"].notes == ["cwd, seed 0 failed: diverged"]
    curve = sections["AP during training"].figures[0].traces[0]
    assert curve["name"] == "pkd"
    assert curve["x"] == [1.0, 2.0]
    assert curve["y"] == pytest.approx([100 * (0.1 + 0.01 + 0.04) / 2, 100 * (0.1 + 0.01 + 0.04)])
    sizes, gains = sections["Object sizes"].figures
    assert sizes.traces[0]["x"] == pytest.approx([15.0, 30.0])
    assert gains.traces[0]["x"] == pytest.approx([4.0, 8.0])
    names = [trace["name"] for trace in sizes.traces]
    assert names == ["pkd", "mgd[&lt;b&gt;=1]", "none"]
    assert [trace["name"] for trace in gains.traces] == names[:-1]  # same colors as with the baseline
    classes, gains = sections["Classes"].figures
    assert classes.traces[0]["x"] == pytest.approx([15.0, 45.0])
    assert gains.traces[0]["x"] == pytest.approx([4.0, 12.0])


def test_summary(results: PairResults) -> None:
    first = "The best method is pkd with 15.0 AP, 4.0 above the baseline (3 seeds). The best teacher reaches 50.0."
    assert page.summarize(results) == f"{first} Better than the baseline with every seed: pkd."
    losing = replace(results, rows=[row for row in results.rows if row.method != "pkd"])
    first = first.replace("pkd with 15.0 AP, 4.0 above", "mgd[<b>=1] with 9.0 AP, 2.0 below")
    assert page.summarize(losing) == f"{first} Better than the baseline with every seed: none."
    assert page.summarize(replace(results, rows=[])) == ""


def test_page_links_run_reports(results: PairResults, tmp_path: Path) -> None:
    page = Path(results.rows[-1].run) / "report.html"
    page.touch()
    section = result_sections(results, TABLE, [], tmp_path / "pair")[-1]
    assert section.links == [("mgd[<b>=1], seed 2", f"../{quote(page.parent.name)}/report.html")]


def test_page_shows_classes_with_largest_differences(
    results: PairResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MAX_CLASSES", 1)
    section = next(section for section in result_sections(results, TABLE, [], tmp_path) if section.title == "Classes")
    assert section.notes[-1] == "The 1 of 3 classes on which the methods differ most."
    assert section.figures[0].traces[0]["y"] == ["shark"]


def test_gains_have_mean_interval_and_seeds(results: PairResults) -> None:
    summaries = [summary for summary in results.summaries() if summary.difference is not None]
    bars, dots = gains_figure(summaries).traces
    assert bars["y"] == ["pkd", "mgd[&lt;b&gt;=1]"]
    assert bars["x"] == pytest.approx([4.0, -2.0])
    low, high = (100 * end for end in summaries[0].interval)
    assert bars["error_x"]["array"][0] == pytest.approx(high - 4, abs=1e-4)
    assert bars["error_x"]["arrayminus"][0] == pytest.approx(4 - low, abs=1e-4)
    assert dots["x"] == pytest.approx([2.0, 4.0, 6.0, -1.0, -2.0, -3.0])


def test_page_without_run_folders_has_table_and_gains(results: PairResults, tmp_path: Path) -> None:
    for folder in tmp_path.iterdir():
        folder.rename(folder.with_name(f"moved-{folder.name}"))
    titles = [section.title for section in result_sections(results, TABLE, [], tmp_path)]
    assert titles == ["Methods", "Warnings", "Gain over the baseline"]


def test_page_does_not_read_the_logs_of_steps(results: PairResults, tmp_path: Path) -> None:
    for row in results.rows:
        (Path(row.run) / "log.csv").write_text("no log")
    assert "AP during training" in [section.title for section in result_sections(results, TABLE, [], tmp_path)]


def test_rewritten_tables_are_identical(results: PairResults, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "pair"
    write_results(results, folder)
    write_tables(results, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("report.html", "table.md", "plot.png"):
        (folder / name).unlink()
    assert rewrite_tables(tmp_path / "out") == rewrite_tables(folder) == [folder / "report.html"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert rewrite_tables(tmp_path / "out" / "nothing") == []
    assert read_results(folder) == results


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pair": "x", "teachers": {}, "rows": [{}], "summary": []}'])
def test_damaged_results_are_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DfmsdError, match=r"results\.json is damaged"):
        rewrite_tables(tmp_path)
