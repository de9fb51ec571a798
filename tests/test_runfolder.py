"""What a run folder states, and how a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder, check_run


def test_an_empty_folder_holds_no_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.exists
    assert not folder.finished
    assert folder.image_size() is None
    assert folder.data_root() is None
    assert folder.read_metrics() is None


def test_config_and_metrics_mark_a_run_and_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config_file.write_text("data: {root: cells, image_size: 96}")
    assert folder.exists
    assert not folder.finished
    assert (folder.data_root(), folder.image_size()) == ("cells", 96)
    folder.metrics_file.write_text('{"AP": 0.5}')
    assert folder.finished
    assert folder.read_metrics() == {"AP": 0.5}


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "\t"])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(text)
    with pytest.raises(DfmsdError, match=r"config\.yaml is damaged"):
        folder.image_size()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_file.write_text(text)
    with pytest.raises(DfmsdError, match=r"metrics\.json"):
        folder.read_metrics()


def test_a_missing_run_is_refused_with_those_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DfmsdError, match=r"^no run folder at nope; pass the `out:` of a `dfmsd train` or"):
        check_run(Path("nope"))
    for name in ("demo/baseline", "runs/b", "runs/a", "runs/deep/er/c", "notes"):
        Path(name).mkdir(parents=True)
        (Path(name) / "config.yaml").write_text("server: 1" if name == "notes" else "{data: {}, out: x}")
    check_run(Path("runs/a"))
    for missing, found in {
        "nope": "demo/baseline, runs/a, runs/b",
        "runs/nope": "runs/a, runs/b",
        "runs/gone/nope": "runs/a, runs/b",
        f"{tmp_path}/demo/nope": f"{tmp_path}/demo/baseline",
    }.items():
        with pytest.raises(DfmsdError, match=f"^no run folder at {missing}; there are {found}$"):
            check_run(Path(missing))
    named = r"^`baseline`: no run folder at demo/x; there are demo/baseline, runs/a, runs/b$"
    with pytest.raises(DfmsdError, match=named):
        check_run(Path("demo/x"), Path("runs/b"), name="baseline")
    with pytest.raises(DfmsdError, match=r"at demo/x; there are demo/baseline, runs/a, runs/b$"):
        check_run(Path("demo/x"), Path())
    for number in range(10):
        (Path("many") / f"{number}").mkdir(parents=True)
        (Path("many") / f"{number}" / "config.yaml").write_text("{data: {}, out: x}")
    with pytest.raises(DfmsdError, match=r"there are many/0, many/1, .*, many/7 and 2 more$"):
        check_run(Path("many/nope"))
