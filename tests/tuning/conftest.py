from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.fixtures import STUDENT

from dfmsd.data import DataConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.saved_config import write_config
from dfmsd.tuning import contest, search
from dfmsd.tuning.config import TuneConfig, TuneSection
from dfmsd.tuning.folder import SearchFolder
from dfmsd.tuning.problem import Problem, pose

SPACE: dict[str, Any] = {
    "plan": ["config", "T1", "T1+T2", "T1&T2"],
    "balance": {"low": 0.5, "high": 8, "log": True},
    "lr": None,
    "pairing": None,
    "inherit": None,
}


@pytest.fixture(scope="session")
def tune_config(tiny_root: Path, tiny_teachers: tuple[str, str]) -> Callable[..., TuneConfig]:
    """Return a function that builds configs of eight epochs of a step, with an FCOS and a Faster R-CNN as teachers."""

    def build(out: Path, space: dict[str, Any] = SPACE, **values: Any) -> TuneConfig:
        first, second = tiny_teachers
        defaults: dict[str, Any] = {
            "data": DataConfig(str(tiny_root), image_size=64, batch_size=2, holdout=0.3),
            "student": STUDENT,
            "stages": [StageConfig(2, teacher=first), StageConfig(6, teacher=second)],
            "optim": OptimConfig(warmup=1),
        }
        return TuneConfig(out=str(out), tune=TuneSection(space), **{**defaults, **values})

    return build


def quality(config: DistillConfig) -> float:
    """Return an AP that depends on the settings: highest for both teachers at once and a balance of 2."""
    if not any(stage.teachers for stage in config.stages):
        return 0.2 + 0.01 * (config.seed % 2)
    together = max(len(stage.teachers) for stage in config.stages)
    distance = abs((config.balance or 2.0) - 2.0)
    return 0.25 + 0.1 * together - 0.02 * distance + 0.003 * (config.seed % 2)


class FakeRuns:
    """Replacement of `run_all`: runs that take no time, one after another, in this process.

    Attributes:
        begun: run and epoch at which it begins or is continued.
        killed_at: number of epochs, over all runs, after which the process is as good as killed.
        fails: name of a run -> why it fails.
    """

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.reports: list[str] = []
        self.killed_at: int | None = None
        self.fails: dict[str, str] = {}
        self.epochs = 0

    def __call__(self, runs: Iterable[Any], jobs: int, on_end: Any, *arguments: Any, **options: Any) -> None:
        for run in runs:
            on_end(run, self.carry_out(run, options.get("stop") or (lambda run: False)))
            if options.get("report", True):
                self.reports.append(str(run))

    def carry_out(self, run: Any, stop: Callable[[Any], bool]) -> str | None:
        folder, config = run.folder, run.config
        if not folder.exists:
            folder.path.mkdir(parents=True)
            write_config(config, folder.path)
            folder.epochs_file.write_text("epoch,AP\n")
        done = int(folder.last_checkpoint.read_text()) if folder.last_checkpoint.exists() else 0
        self.begun.append((str(run), done))
        for epoch in range(done, config.epochs):
            if self.epochs == self.killed_at:
                raise Killed
            self.epochs += 1
            ap = quality(config) * (epoch + 1) / config.epochs
            with folder.epochs_file.open("a") as file:
                file.write(f"{epoch},{ap}\n")
            folder.last_checkpoint.write_text(str(epoch + 1))
            if stop(run):
                return f"interrupted: {run.folder} is the student so far"
        if reason := self.fails.get(str(run)):
            return reason
        folder.metrics_file.write_text(json.dumps({"AP": quality(config)}))
        return None


class Killed(BaseException):
    """The process has been killed."""


@pytest.fixture(scope="session")
def make_problem(
    tune_config: Callable[..., TuneConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Problem]:
    """Return a function that builds what is searched, with its folder."""
    out = tmp_path_factory.mktemp("search")
    problem = pose(tune_config(out), ("square", "disc"), SearchFolder(out))
    return lambda path: replace(problem, folder=SearchFolder(path))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    made = FakeRuns()
    monkeypatch.setattr(search, "run_all", made)
    monkeypatch.setattr(contest, "run_all", made)
    return made
