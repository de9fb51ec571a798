"""What a type checker sees of the package in a user's program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = """
from pathlib import Path

import dfmsd
from dfmsd.data import read_image

student = dfmsd.DetectorConfig(arch="fcos", backbone="resnet18")
result = dfmsd.distill("fcos/resnet18", ["a", ["b", Path("c")]], data="data", out="run", epochs=3, seed=1)
ap: float | None = result.metrics["AP"]
dfmsd.distill(dfmsd.DistillConfig(out="run"), resume=True, balance=None)
dfmsd.distill("recipe.yaml", out=Path("run"), report=False)
dfmsd.train(student, "digits", "run", epochs=3, optim=dfmsd.OptimConfig(lr=1e-3))
dfmsd.evaluate(result.student, "data", image_size=64)["AP50"]
dfmsd.export("run", "onnx", int8=True)
criterion = dfmsd.losses.build("dfmsd", [dfmsd.LevelSpec("p3", 64, 8)], [dfmsd.LevelSpec("p3", 64, 8)])
version: str = dfmsd.__version__
"""
WRONG = """
import dfmsd

dfmsd.nothing
dfmsd.data.nothing
dfmsd.detectors.nothing
dfmsd.distill("fcos", "a", "data", "run", epoch=3)
dfmsd.distill("fcos", "a", "data", "run", epochs="3")
dfmsd.distill("recipe.yaml", sed=3)
dfmsd.train("fcos", "data", "run", precision="64")
dfmsd.evaluate(3, "data")
dfmsd.export("run", "tensorrt")
from dfmsd import nothing
from dfmsd.data import nothing
from dfmsd.detectors import nothing
"""


@pytest.mark.slow
def test_mypy_accepts_right_calls_and_refuses_wrong_ones(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    root = Path(__file__).parents[2]
    options = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(root / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *options, "right.py", "wrong.py"]
    found = subprocess.run(
        command, cwd=tmp_path, env={"MYPYPATH": str(root / "src")}, capture_output=True, text=True, check=False
    )
    lines = {int(line) for line in re.findall(r"^wrong\.py:(\d+): error", found.stdout, flags=re.MULTILINE)}
    assert lines == {number for number, line in enumerate(WRONG.splitlines(), 1) if line and line != "import dfmsd"}
    assert "right.py" not in found.stdout, found.stdout
