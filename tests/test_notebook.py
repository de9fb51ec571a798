"""The notebook has no outputs, its commands parse, and it runs from the first cell to the last on tiny data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dfmsd.cli import main as cli
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "dfmsd.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}
TINY = """
DATA = "data"
IMAGE_SIZE, BATCH_SIZE = 64, 4
TEACHER, TEACHER_EPOCHS = "mobilenetv3_small_050", 1
STUDENT, STUDENT_EPOCHS = "mobilenetv3_small_050", 1
PRETRAINED = False
CHANNELS = 16
FLAGS = ""
DISTILL_FLAGS = "--allow-weak-teacher"
"""


def settings(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(source, names)
    return {name: value for name, value in names.items() if name.isupper()}


def commands() -> list[list[str]]:
    """Return the arguments of every `!dfmsd`, with the settings of the notebook filled in."""
    lines = [line for source in CODE.values() for line in source.splitlines() if line.startswith("!dfmsd ")]
    return [shlex.split(line.format(**settings(CODE["parameters"])))[1:] for line in lines]


def python_of(source: str) -> str:
    """Blank out IPython's lines, which begin with ``!`` or ``%``."""
    return re.sub(r"^[!%].*$", "pass", source, flags=re.MULTILINE)


def test_the_notebook_has_no_outputs() -> None:
    assert CODE
    for cell in CELLS:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("name", CODE)
def test_cells_compile(name: str) -> None:
    compile(python_of(CODE[name]), name, "exec")


@pytest.mark.parametrize("line", commands(), ids=" ".join)
def test_commands_parse(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    names = settings(CODE["parameters"])
    exec(CODE["configs"], names)
    read_config(TrainConfig, tmp_path / "teacher.yaml")
    read_config(DistillConfig, tmp_path / "student.yaml")
    seen: list[Any] = []
    monkeypatch.setitem(cli.COMMANDS, line[0], cli.COMMANDS[line[0]]._replace(run=seen.append))
    cli.run(line)
    assert len(seen) == 1


def test_the_configs_equal_those_of_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    exec(CODE["configs"], settings(CODE["parameters"]))
    page = (NOTEBOOK.parents[1] / "docs" / "quickstart.md").read_text(encoding="utf-8")
    student = re.search(r'```yaml title="student.yaml"\n(.*?)```', page, flags=re.DOTALL)
    assert student
    (tmp_path / "quickstart.yaml").write_text(student[1])
    own = read_config(DistillConfig, tmp_path / "student.yaml")
    assert own == read_config(DistillConfig, tmp_path / "quickstart.yaml")


@pytest.mark.slow
def test_the_notebook_runs(tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every cell but the installation in a new kernel; `!dfmsd` is the script next to this Python."""
    client = pytest.importorskip("nbclient", reason="needs pip install 'dfmsd[dev]'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("onnxruntime")
    beside = Path(sys.executable).parent
    if not shutil.which("dfmsd", path=str(beside)):
        pytest.skip("dfmsd is not installed next to this Python")
    monkeypatch.setenv("PATH", f"{beside}{os.pathsep}{os.environ['PATH']}")
    tiny_coco.rename(tmp_path / "data")
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.cells = [cell for cell in book.cells if "install" not in cell.metadata.get("tags", [])]
    parameters = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    assert settings(TINY).keys() == settings(parameters.source).keys()
    parameters.source = TINY
    client.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = {cell.id: "".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in book.cells}
    assert not [name for name, text in printed.items() if "dfmsd: error" in text or "Traceback" in text]
    for name, line in zip(("teacher", "baseline", "student"), printed["scores"].splitlines(), strict=True):
        metrics = json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
        assert line.split() == [
            name, *(part for key in ("AP", "AP50", "AP75") for part in (key, f"{100 * metrics[key]:.1f}"))
        ]  # fmt: skip
    shown = next(cell for cell in book.cells if cell.id == "report").outputs[-1].data["text/html"]
    assert "srcdoc=" in shown
    assert "&lt;html" in shown
    assert len(next(cell for cell in book.cells if cell.id == "predict").outputs) >= 3
    assert (tmp_path / "runs" / "student" / "student.onnx").is_file()
