"""The scripts under examples/ run; those that train, for one epoch."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from tests.helpers.documented import ROOT

EXAMPLES = ROOT / "examples"
TRAINING = ["distill_digits", "custom_loss", "custom_detector"]


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_every_example_is_listed_and_run() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"loss_in_your_loop", *TRAINING}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name}.py)" in listed for name in names)


@pytest.mark.slow
def test_the_loss_in_a_loop_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("loss_in_your_loop", monkeypatch)
    assert capsys.readouterr().out.count("of which distillation") == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_examples_that_train(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="needs pip install 'dfmsd[demo]'")
    run(name, monkeypatch, "--epochs", "1", "--out", str(tmp_path))
    assert (tmp_path / "student" / "student.safetensors").is_file()
    assert "AP" in capsys.readouterr().out
