"""Commands that write refuse a place that cannot be written before their work begins, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.command import Command
from tests.helpers.full_disk import files_of_at_most

LINES = {
    "train": ["train", "--data.root", "DATA", "--out", "OUT"],
    "demo": ["demo", "--out", "OUT"],
    "init": ["init", "DATA", "--teacher", "MODEL", "--out", "OUT/my.yaml"],
    "predict": ["predict", "--model", "MODEL", "--out", "OUT", "DATA/val"],
    "predict as annotations": ["predict", "--model", "MODEL", "--as-annotations", "OUT/labels.json", "DATA/val"],
    "visualize": ["visualize", "--model", "MODEL", "--teacher", "MODEL", "--out", "OUT", "DATA/val"],
    "convert": ["convert", "DATA", "--to", "yolo", "--out", "OUT"],
    "evaluate": ["evaluate", "--model", "MODEL", "--data", "DATA", "--out", "OUT/metrics.json"],
    "export": ["export", "--model", "MODEL", "--format", "torch", "--images", "DATA/val", "--out", "OUT/student.pt2"],
    "share": ["share", "MODEL", "--out", "OUT"],
    "compare": ["compare", "--data.root", "DATA", "--out", "OUT", "--pairs", "{a: [MODEL]}", "--methods", "none"],
}


@pytest.fixture
def line(
    dfmsd: Command, finished_run: Callable[..., Path], tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], str]:
    """The refusal of a command that writes to a place."""
    model = finished_run("model")

    def work(*_: Any, **__: Any) -> None:
        pytest.fail("work has begun")

    for name in ("visualization.visualizer", "exporting.exporter", "sharing", "api.models"):
        monkeypatch.setattr(f"dfmsd.{name}.load_detector", work, raising=False)
    monkeypatch.setattr("dfmsd.starting.starter.gather", work)

    def refusal(name: str, out: str) -> str:
        values = {"DATA": str(tiny_root), "MODEL": str(model), "OUT": out}
        words = LINES[name]
        for key, value in values.items():
            words = [word.replace(key, value) for word in words]
        return dfmsd.refusal(*words)

    return refusal


@pytest.mark.parametrize("name", LINES)
def test_a_file_in_place_of_a_folder(dfmsd: Command, line: Callable[[str, str], str], name: str) -> None:
    (dfmsd.folder / "file").touch()
    error = line(name, "file/below")
    assert "cannot write to" in error
    assert "; choose another folder" in error


@pytest.mark.parametrize("name", [name for name in LINES if name != "compare"])
def test_a_folder_without_the_right_to_write(
    line: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dfmsd.utils.files.TemporaryFile", refuse)
    monkeypatch.setattr("dfmsd.utils.lock.SoftFileLease.acquire", refuse)
    assert "(Permission denied); choose another folder" in line(name, "out")


def test_a_report_into_a_folder_without_the_right_to_write(
    dfmsd: Command, finished_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run("run")
    monkeypatch.setattr("dfmsd.reporting.writer.load_detector", lambda *_: pytest.fail("work has begun"))
    (run / "report.html").mkdir()
    assert "report.html is a folder" in dfmsd.refusal("report", run)


def test_an_estimate_needs_a_file(dfmsd: Command) -> None:
    (dfmsd.folder / "folder").mkdir()
    dfmsd.write("run.yaml", {"out": "run", "stages": [{"epochs": 1, "teacher": "a"}]})
    assert "json: folder is a folder" in dfmsd.refusal("estimate", "--config", "run.yaml", "--json", "folder")


@pytest.mark.parametrize(
    "words", [["share", "MODEL", "--out", "out"], ["data", "DATA", "--out", "out"], ["convert", "DATA", "--out", "out"]]
)
def test_a_full_disk(dfmsd: Command, finished_run: Callable[..., Path], tiny_root: Path, words: list[str]) -> None:
    values = {"MODEL": str(finished_run("model")), "DATA": str(tiny_root)}
    with files_of_at_most(100):
        status, _, error = dfmsd(*(values.get(word, word) for word in words))
    assert status == 2
    assert error == "dfmsd: error: no space left to write (File too large); free some, then try again\n"
    assert words[0] == "data" or not (dfmsd.folder / "out").exists()
