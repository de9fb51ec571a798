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
NAMES = (
    r"MobileNetV3-small \d\.\d|0\.63 M|2\.35 M|2\.6 M|`alpha: 0\.3`|`alpha` of 0\.3"
    r"|learning\srate(?:\sof)?\s0\.00[13]|At 0\.003|1\.16, 1\.19, 1\.03 and 1\.03|5\.0 to 7\.3 AP"
)
"""Numbers of the templates' own: of models and settings, and of the two sentences that name another source."""


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


def test_the_picture_shows_the_gains_of_the_files(pages: ModuleType, tmp_path: Path) -> None:
    def texts(path: Path) -> list[str]:
        return re.findall(r">([^<>]*\w[^<>]*)</text>", path.read_text(encoding="utf-8"))

    with mpl.rc_context():
        pages.figure.draw(tmp_path / "gains.svg")
    assert "digits: FCOS from FCOS" in texts(tmp_path / "gains.svg")
    assert texts(ROOT / "docs" / "assets" / "gains.svg") == texts(tmp_path / "gains.svg")


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
    assert (table.ap("pkd"), table.seeds("dfmsd"), table.mean("dfmsd")) == ("33.0", "32.0, 34.0, 39.0", "35.0")
    assert (table.spread("dfmsd"), table.spread("pkd")) == ("35.0 ± 3.6", "33.0")
    assert (table.gains("dfmsd"), table.gains("dfmsd", "pkd")) == ("+2.0, +3.0, +4.0", "-1.0")
    assert table.interval("dfmsd") == "+3.0 [+0.5, +5.5]"  # 3 ± 4.303 / sqrt(3)
    assert table.interval("pkd") == "+3.0"
    assert (table.recovered("dfmsd"), table.recovered("pkd")) == ("30 %", "25 %")  # of 42 - 32, and of 42 - 30
    assert table.line("pkd", "seeds spread gain recovered step memory") == (
        "| pkd | 33.0 | | | 33.0 | +3.0 | 25 % | 1.25 | |"
    )
    assert table.line("none", "list gains", "no teacher", bold=True) == "| **no teacher** | 30.0, 31.0, 35.0 | |"
    assert table.joined("ours", table, "dfmsd").gains("ours", "none") == "+2.0, +3.0, +4.0"
    assert tables.unsigned("-1.8 [+0.9, 2.7] T1-T2") == "1.8 [0.9, 2.7] T1-T2"


def test_later_files_replace_rows(tables: ModuleType) -> None:
    def content(ap: float, *methods: str) -> dict[str, object]:
        return {"teachers": {}, "rows": [{"method": method, "seed": 0, "AP": ap} for method in methods]}

    both = tables.scores(content(0.1, "none", "pkd"), content(0.2, "none"))
    assert both.runs == {"none": {0: 20.0}, "pkd": {0: 10.0}}
    assert tables.by_seed({"row": {"3": 0.5}}).runs == {"row": {3: 50.0}}


def test_numbers_of_the_readme_are_in_the_pages() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Results") : readme.index("## Your own data")]
    known = "".join(Path(ROOT, "docs", name).read_text() for name in ("results.md", "lab-notebook.md"))
    missing = [number for number in re.findall(r"\d+\.\d(?: ± \d\.\d)?|\d+ of \d+", section) if number not in known]
    assert missing == []


def test_comparisons_and_files_belong_together(pages: ModuleType, tables: ModuleType) -> None:
    files = {path.stem for path in tables.RESULTS.glob("*.json")}
    assert set(pages.comparisons()) <= files
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.py"), *FOLDER.glob("*")]
    cited = "".join(path.read_text(encoding="utf-8") for path in texts if path.is_file())
    written = {name for name in files if re.sub("-[a-z]+$", "-<data>", name) in cited}  # where a script names it so
    assert [name for name in sorted(files - written) if name not in cited] == []


def test_commands_of_a_page(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "comparisons", lambda: {"a": ["--config a.yaml"], "b": ["--config b.yaml", "--seeds 1"]})
    lines = ["dfmsd compare --config a.yaml", "dfmsd compare --config b.yaml", "dfmsd compare --seeds 1"]
    block = [f"    {line}" for line in (*lines, "# benchmarks/results/a.json, b.json")]
    assert pages.command("a", "b").splitlines() == block


def test_runs_of_all_pairs(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "new": tables.Scores({"dfmsd": {0: 0.30, 1: 0.31, 2: 0.32}, "pkd": {0: 0.29, 1: 0.33}}),
        "old": tables.Scores({"ours": {0: 0.9}, "pkd": {0: 0.1}, "mgd": {0: 0.1}}),
        "other": tables.Scores({"ours": {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8}, "pkd": {0: 0.47, 1: 0.56, 2: 0.65, 3: 0.74}}),
    }
    monkeypatch.setattr(tables, "comparison", files.get)
    pairs = [[("new", "dfmsd"), ("old", "ours")], [("other", "ours")]]
    # of the ranks 1 to 6 only 2 is negative: 3 of 64 choices of signs have a sum of 2 or less, on either side
    assert tables.over_pairs("pkd", pairs).line == "2 | 6 | 5 | +2.8 | 0.094"
    assert str(tables.over_pairs("pkd", pairs)) == "5 of 6"
    assert tables.over_pairs("mgd", pairs).line.startswith("1 | 1 | 1 | +80.0 |")
