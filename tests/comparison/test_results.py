from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from dfmsd.comparison.results import PairResults, Row, known_rows, write_results
from dfmsd.comparison.tables import missing_rows, notes, print_table, table_header, table_rows, write_tables
from dfmsd.engine.runconfig import Deliver


def row(method: str, seed: int, ap: float, *, variant: bool = False) -> Row:
    time, memory = (1.0, 1.0) if method == "none" else (1.25, 1.5)
    return Row(method, seed, 12, ap, ap + 0.2, None, time, memory, variant, f"runs/{method}/{seed}")


@pytest.fixture
def results() -> PairResults:
    rows = [row("none", seed, ap) for seed, ap in enumerate([0.30, 0.31, 0.32])]
    rows += [row("pkd", seed, ap) for seed, ap in enumerate([0.33, 0.35, 0.37])]
    rows += [row("mgd", seed, ap) for seed, ap in enumerate([0.31, 0.30])]
    rows += [row("mgd[ratio=0]", 0, 0.40, variant=True)]
    return PairResults(
        "hard|pair",
        {"weak.yaml": 0.36, "strong.yaml": 0.51},
        rows,
        skipped={"crosskd": "other heads"},
        failed={"hard|pair: cwd, seed 1": "loss is not finite"},
    )


def test_summaries(results: PairResults) -> None:
    pkd, none, mgd, control = results.summaries()
    assert [s.method for s in (pkd, none, mgd, control)] == ["pkd", "none", "mgd", "mgd[ratio=0]"]
    assert pkd.mean == pytest.approx(0.35)
    assert pkd.deviation == pytest.approx(0.02)
    assert list(pkd.differences.values()) == pytest.approx([0.03, 0.04, 0.05])
    assert pkd.difference == pytest.approx(0.04)
    assert pkd.interval == pytest.approx((0.0152, 0.0648), abs=1e-4)  # 0.04 ± 4.303 * 0.01 / sqrt(3)
    assert pkd.gap_recovery == pytest.approx(0.04 / (0.51 - 0.31))
    assert mgd.difference == pytest.approx(0.0)
    assert mgd.interval is None
    assert control.gap_recovery == pytest.approx(0.10 / (0.51 - 0.30))  # against the baseline with the same seeds
    assert (none.difference, none.interval, none.gap_recovery) == (None, None, None)
    assert (pkd.step_time, pkd.peak_memory) == (1.25, 1.5)


def test_tables(results: PairResults, tmp_path: Path) -> None:
    assert table_rows(results) == [
        ("T1: weak.yaml", "", "36.0", "", "", "", ""),
        ("T2: strong.yaml", "", "51.0", "", "", "", ""),
        ("pkd", "3", "35.0 ± 2.0", "+4.0 [+1.5, +6.5]", "20%", "1.25", "1.50"),
        ("none (baseline)", "3", "31.0 ± 1.0", "", "", "1.00", "1.00"),
        ("mgd", "2", "30.5 ± 0.7", "+1.0, -1.0", "0%", "1.25", "1.50"),
        ("mgd[ratio=0]", "1", "40.0", "+10.0", "48%", "1.25", "1.50"),
    ]
    write_tables(results, tmp_path)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert "| pkd | 3 | 35.0 ± 2.0 | +4.0 [+1.5, +6.5] | 20% | 1.25 | 1.50 |" in lines
    assert any(line.startswith("| crosskd | 0 | does not apply: other heads |") for line in lines)
    assert any(line.startswith(r"| hard\|pair: cwd, seed 1 | 0 | failed: loss is not finite |") for line in lines)
    assert "- Budget: 12 epochs for every method, over all stages." in lines
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "+4.0 [+1.5, +6.5]" in page
    assert page.count("<svg") == 1
    assert Image.open(tmp_path / "plot.png").size[0] > 1000
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "plot.png", "report.html"}


def test_terminal_shows_brackets_and_reasons(results: PairResults) -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        print_table(results, console)
    said = captured.get()
    assert "mgd[ratio=0]" in said
    assert "+4.0 [+1.5, +6.5]" in said
    assert "crosskd does not apply: other heads" in said


def test_files_contain_every_run(results: PairResults, tmp_path: Path) -> None:
    write_results(results, tmp_path / "pair")
    content = json.loads((tmp_path / "pair" / "results.json").read_text())
    assert content["pair"] == "hard|pair"
    assert content["teachers"] == {"weak.yaml": 0.36, "strong.yaml": 0.51}
    expected = {"method", "seed", "epochs", "AP", "step_time", "peak_memory", "variant"}
    assert all(expected <= row.keys() for row in content["rows"])
    assert [(row["method"], row["variant"]) for row in content["rows"]][-2:] == [("mgd", False), ("mgd[ratio=0]", True)]
    assert [summary["method"] for summary in content["summary"]] == ["pkd", "none", "mgd", "mgd[ratio=0]"]
    with (tmp_path / "pair" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["pair"], row["method"], row["seed"]) for row in rows][:2] == [
        ("hard|pair", "none", "0"),
        ("hard|pair", "none", "1"),
    ]
    assert float(rows[3]["AP"]) == 0.33
    assert known_rows(tmp_path / "pair")[-1] == ("mgd[ratio=0]", 0)
    assert known_rows(tmp_path) == []


def test_an_unknown_ap_of_a_teacher_is_not_0(results: PairResults, tmp_path: Path) -> None:
    """A teacher without a head has no AP, and one without common classes neither."""
    results.teachers = {"weak.yaml": None, "strong.yaml": None}
    assert results.best_teacher is None
    assert {summary.gap_recovery for summary in results.summaries()} == {None}
    write_tables(results, tmp_path)
    assert "| T1: weak.yaml |  | - |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "best teacher" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    results.teachers = {"weak.yaml": None, "strong.yaml": 0.511}
    write_tables(results, tmp_path)
    assert "The best teacher reaches 51.1. Better" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_pair_without_runs_lists_teachers(tmp_path: Path) -> None:
    write_tables(PairResults("new", {"t": 0.5}), tmp_path)
    assert "| T1: t |  | 50.0 |" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(("deliver", "whose"), [("last", "the last epoch"), ("best", "the best epoch, chosen on")])
def test_the_notes_say_which_weights_were_measured(results: PairResults, deliver: Deliver, whose: str) -> None:
    results.deliver = deliver
    assert f"COCO AP of {whose}" in notes(results)[0]


def test_a_test_split_has_a_column_of_its_own(results: PairResults, tmp_path: Path) -> None:
    results.rows = [replace(one, test_ap=one.AP - 0.1) for one in results.rows]
    pkd = results.summaries()[0]
    assert pkd.test_mean == pytest.approx(0.25)
    assert pkd.test_deviation == pytest.approx(0.02)
    assert table_header(results)[-1] == "test AP"
    assert [row[-1] for row in table_rows(results)][:3] == ["", "", "25.0 ± 2.0"]
    assert {len(row) for row in [*table_rows(results), *missing_rows(results)]} == {len(table_header(results))}
    write_tables(results, tmp_path)
    assert "| test AP |" in (tmp_path / "table.md").read_text()


def test_a_method_that_is_not_tested_with_every_seed_has_no_mean(results: PairResults) -> None:
    results.rows[4] = replace(results.rows[4], test_ap=0.3)
    assert [summary.test_mean for summary in results.summaries()] == [None] * 4
