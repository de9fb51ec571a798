"""The pages of results say what the JSON files of benchmarks/results hold."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import pytest
from tests.helpers.documented import ROOT

FOLDER = ROOT / "benchmarks" / "pages"
NAMES = r"MobileNetV3-small \d\.\d|0\.63 M|2\.35 M|2\.6 M|`balance: 0\.5`|1\.16, 1\.19, 1\.03 and 1\.03"
"""Numbers of the templates' own: of models and settings, and of the sentence that names another source."""


@pytest.fixture(scope="module", autouse=True)
def _folder() -> Iterator[None]:
    sys.path.insert(0, str(FOLDER))  # as for a script, for its neighbors
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    return import_module("write")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return import_module("scores")


@pytest.mark.parametrize("name", ["results.md", "costs.md"])
def test_pages_are_what_their_templates_say(pages: ModuleType, name: str) -> None:
    assert sorted(pages.PAGES) == ["costs.md", "results.md"]
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == pages.render(name), "run python benchmarks/pages/write.py"


@pytest.mark.parametrize("name", ["gains.svg", "differences.svg"])
def test_the_plots_show_the_files(pages: ModuleType, tmp_path: Path, name: str) -> None:
    def texts(path: Path) -> list[str]:
        return re.findall(r">([^<>]*\w[^<>]*)</text>", path.read_text(encoding="utf-8"))

    with mpl.rc_context():
        pages.figure.draw(tmp_path)
    assert any("BCCD: FCOS from FCOS" in text for text in texts(tmp_path / name))
    assert texts(ROOT / "docs" / "assets" / name) == texts(tmp_path / name)


@pytest.mark.parametrize("name", ["results.md", "costs.md"])
def test_templates_hold_no_measured_number(name: str) -> None:
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    prose = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", text, flags=re.DOTALL)
    prose = re.sub(r"^    .*$", "", prose, flags=re.MULTILINE)  # commands
    assert re.findall(r".*\d\.\d.*", re.sub(NAMES, "", prose)) == []


def test_scores_of_a_table(tables: ModuleType) -> None:
    runs = {"none": {0: 0.30, 1: 0.31, 2: 0.35}, "dfmsd": {2: 0.39, 0: 0.32, 1: 0.34}, "pkd": {0: 0.33}}
    table = tables.Scores(runs, {"runs/teacher_a": 0.42}, {"pkd": {"step_time": 1.255, "peak_memory": None}})
    assert table.teacher("teacher_a") == "42.0"
    assert (table.seeds("dfmsd"), table.mean("dfmsd")) == ("32.0, 34.0, 39.0", "35.0")
    assert (table.spread("dfmsd"), table.spread("pkd")) == ("35.0 ± 3.6", "33.0")
    assert (table.gains("dfmsd"), table.gains("dfmsd", "pkd")) == ("+2.0, +3.0, +4.0", "-1.0")
    assert table.interval("dfmsd") == "+3.0 [+0.5, +5.5]"  # 3 ± 4.303 / sqrt(3)
    assert table.interval("pkd") == "+3.0"
    assert (table.recovered("dfmsd"), table.recovered("pkd")) == ("30 %", "25 %")  # of 42 - 32, and of 42 - 30
    assert (table.cost("pkd", "step_time"), table.cost("pkd", "peak_memory"), table.cost("none", "step_time")) == (
        ("1.25", "", "")
    )


def test_a_difference_is_sure_if_its_interval_is_above_zero(tables: ModuleType) -> None:
    table = tables.Scores(
        {"none": {0: 0.1, 1: 0.1, 2: 0.1}, "a": {0: 0.12, 1: 0.13, 2: 0.14}, "b": {0: 0.2, 1: 0.1, 2: 0.1}}
    )
    assert table.sure("a")  # 3 ± 2.5
    assert not table.sure("b")
    assert not table.sure("none", "a")
    assert not tables.Scores({"none": {0: 0.1}, "a": {0: 0.2}}).sure("a")  # one seed has no interval


def test_methods_of_a_teacher_by_their_mean_over_common_seeds(tables: ModuleType) -> None:
    rows = {"pkd@T2": {0: 0.2, 1: 0.9}, "mgd@T2": {0: 0.3}, "dfmsd@T2": {0: 0.4, 1: 0.1}, "none": {0: 0.1}}
    others = {"pkd@T1": {0: 0.1}, "dfmsd@T2[basis=own]": {0: 0.9}, "dfmsd@T1+T2": {0: 0.9}}
    table = tables.Scores(rows | others)
    assert table.ranked("T2") == ["dfmsd@T2", "mgd@T2", "pkd@T2"]
    assert (table.next_best("T2"), table.next_best("T1")) == ("mgd@T2", "pkd@T1")
    assert table.common_means(["pkd@T2", "dfmsd@T2"]) == pytest.approx({"pkd@T2": 55, "dfmsd@T2": 25})


def test_claims_of_a_table(tables: ModuleType) -> None:
    claims = import_module("claims")
    rows = {"none": [0.1, 0.1, 0.1], "dfmsd@T2": [0.12, 0.13, 0.14], "pkd@T2": [0.2, 0.1, 0.1], "mgd@T2": [0.1] * 3}
    table = tables.Scores({row: dict(enumerate(aps)) for row, aps in rows.items()})
    found = claims.answers_of("Here", table)
    assert [(claim.partition(": ")[2].split()[-1], holds) for claim, _, holds in found] == [
        ("teacher", True),
        ("pkd@T2", False),
    ]


def test_numbers_of_the_readme_are_in_the_pages() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Results") : readme.index("## Your own data")]
    known = "".join(
        Path(ROOT, "docs", name).read_text() for name in ("results.md", "results-adamw.md", "lab-notebook.md")
    )
    missing = [number for number in re.findall(r"\d+\.\d(?: ± \d\.\d)?|\d+ of \d+", section) if number not in known]
    assert missing == []


def test_comparisons_and_files_belong_together(pages: ModuleType, tables: ModuleType) -> None:
    files = {path.stem for path in tables.RESULTS.glob("*.json")}
    missing = set(pages.comparisons()) - files
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in missing)
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.py"), *FOLDER.glob("*")]
    cited = "".join(path.read_text(encoding="utf-8") for path in texts if path.is_file())
    written = {name for name in files if re.sub("-[a-z]+$", "-<data>", name) in cited}  # where a script names it so
    assert [name for name in sorted(files - written) if name not in cited] == []


def test_commands_of_a_page(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "comparisons", lambda: {"a": ["--config a.yaml"], "b": ["--config b.yaml", "--seeds 1"]})
    lines = ["dfmsd compare --config a.yaml", "dfmsd compare --config b.yaml", "dfmsd compare --seeds 1"]
    block = [f"    {line}" for line in (*lines, "# benchmarks/results/a.json, b.json")]
    assert pages.command("a", "b").splitlines() == block


def test_models_of_a_peer(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"AP": 0.4, "own_AP": 0.5}
    monkeypatch.setattr(tables, "read", lambda name: {"nano, 64 px": {"0": run, "1": run | {"AP": 0.5}}})
    assert tables.peer("peer-cells").seeds("nano, 64 px") == "40.0, 50.0"


def test_a_lead_over_several_tables(tables: ModuleType) -> None:
    one = tables.Scores({"ours@T1": {0: 0.30, 1: 0.31, 2: 0.32}, "pkd@T1": {0: 0.29, 1: 0.33}, "ours@T2": {0: 0.9}})
    other = tables.Scores({"ours@T2": {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8}, "pkd@T2": {0: 0.47, 1: 0.56, 2: 0.65, 3: 0.74}})
    lead = tables.lead([one, other], ("ours@T1", "pkd@T1"), ("ours@T2", "pkd@T2"))
    # of the ranks 1 to 6 only 2 is negative: 3 of 64 choices of signs have a sum of 2 or less, on either side
    assert lead.line == "2 | 5 of 6 | +2.8 | 0.094"
