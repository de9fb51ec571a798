"""The launchers with real processes: this machine, submitit without SLURM, SLURM where there is one, a local Ray."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dfmsd.comparison import runner
from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runs import PlannedRun, plan_runs
from dfmsd.errors import INTERRUPTED
from dfmsd.launching.choice import opened
from dfmsd.launching.config import LauncherName, RayConfig, SlurmConfig
from dfmsd.launching.jobs import run_all
from dfmsd.launching.launcher import Launcher, Process
from dfmsd.launching.process import LOG, Ended

EPOCHS = 12
"""Enough that a run is still training when its first epoch is noticed."""
MEASURED = ("step_time", "peak_memory", "seconds", "run")
"""Columns that differ between two runs of the same numbers."""
FOLLOWS = """
import sys, time
from dfmsd.launching.child import carry_out

def work():
    print("begun", flush=True)
    try:
        for _ in range(1200):
            time.sleep(0.05)
    except KeyboardInterrupt:
        print("saved", flush=True)
        raise

sys.exit(carry_out(work))
"""


@dataclass
class Choice:
    """The keys of a config that name a launcher."""

    launcher: LauncherName
    slurm: SlurmConfig = field(default_factory=lambda: SlurmConfig(cpus=1, gpus=0))
    ray: RayConfig = field(default_factory=lambda: RayConfig("local", cpus=1, gpus=0))


def has_slurm() -> bool:
    """Whether this machine belongs to a SLURM whose controller answers."""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=10).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


CHOICES = [
    pytest.param(Choice("local"), id="local"),
    pytest.param(Choice("slurm", SlurmConfig(cluster="local", cpus=1, gpus=0)), id="submitit"),
    pytest.param(
        Choice("slurm"),
        id="slurm",
        marks=[pytest.mark.slow, pytest.mark.skipif(not has_slurm(), reason="no SLURM on this machine")],
    ),
    pytest.param(Choice("ray"), id="ray", marks=pytest.mark.slow),  # it takes half a minute to start
]
CLUSTERS = CHOICES[1:]


@pytest.fixture
def choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Choice:
    """A launcher whose packages are installed, and processes of one thread."""
    chosen: Choice = request.param
    if chosen.launcher != "local":
        pytest.importorskip({"slurm": "submitit", "ray": "ray"}[chosen.launcher])
        if chosen.launcher == "slurm":
            monkeypatch.setattr("submitit.Job._results_timeout_s", 1)  # that it waits for a result of a killed job
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return chosen


def ended(process: Process, seconds: float = 120) -> Ended:
    deadline = time.monotonic() + seconds
    while (found := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def await_line(log: Path, line: str) -> None:
    deadline = time.monotonic() + 120
    while not log.exists() or line not in log.read_text().splitlines():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("choice", CHOICES, indirect=True)
def test_a_launcher_reports_how_its_processes_end(choice: Choice, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    log = Path("run", LOG)
    with opened(choice) as launcher:
        start = lambda code: launcher.start(["-c", code], Path("run"), 1)  # noqa: E731
        says = "import os, sys; print(os.getcwd(), os.environ['OMP_NUM_THREADS']); sys.exit(3)"
        assert ended(start(says)) == Ended(3)
        assert log.read_text() == f"{tmp_path} 1\n"
        assert ended(start("import os; os.kill(os.getpid(), 9)")) == Ended(None, "signal 9")
        stopped = start(FOLLOWS)
        await_line(log, "begun")
        assert stopped.poll() is None
        stopped.stop()
        assert ended(stopped).status in (None, INTERRUPTED)
        if (launcher.elsewhere and choice.slurm.cluster == "local") or choice.launcher == "ray":
            await_line(log, "saved")  # SLURM may signal the process itself
        if launcher.elsewhere:
            lost = start("import os, sys; os.kill(os.getppid(), 9); sys.stdin.read(); print('parent lost')")
            assert ended(lost).killed.startswith(("SLURM (", "Ray ("))
            await_line(log, "parent lost")


def kill_after_an_epoch(run: PlannedRun) -> Iterator[str]:
    """Kill the process of a run once, when it has written its first checkpoint."""
    while not run.folder.last_checkpoint.exists():
        yield "waits"
    writer = json.loads((run.folder.path / ".writing.json").read_text())
    os.kill(writer["process"], signal.SIGKILL)
    while True:
        yield "killed"


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, indirect=True)
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    choice: Choice, compare_config: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    config = compare_config(tmp_path, methods=["none"], epochs=EPOCHS, eval_every=EPOCHS)
    [run], _ = plan_runs(config, config.parsed_methods(), "both")
    killing = kill_after_an_epoch(run)
    failures: list[str | None] = []

    def stop(_: PlannedRun) -> bool:
        next(killing)
        return False

    with opened(choice) as launcher, (tmp_path / "console").open("w") as file:
        run_all([run], 1, lambda _, why: failures.append(why), Console(file=file, width=200), launcher, stop=stop)
    assert next(killing) == "killed"
    assert "ended by signal 9; it goes on from its last checkpoint" in (tmp_path / "console").read_text()
    assert failures == [None]
    said = (run.folder.path / LOG).read_text()
    assert said.count(f"epoch {EPOCHS}/{EPOCHS}") == 1
    with run.folder.log_file.open() as rows:
        assert [int(row["step"]) for row in csv.DictReader(rows)] == list(range(2 * EPOCHS))


def numbers(out: Path) -> dict[str, Any]:
    """Return what a comparison has measured, but for times and folders."""
    content: dict[str, Any] = json.loads((out / "both" / "results.json").read_text())
    rows = [{key: value for key, value in row.items() if key not in MEASURED} for row in content["rows"]]
    return {"teachers": content["teachers"], "failed": content["failed"], "rows": rows}


@pytest.fixture(scope="module")
def local_numbers(
    compare_config: Callable[..., CompareConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        runner.compare(compare_config(out), allow_weak_teacher=True)
    return numbers(out)


@pytest.mark.slow
@pytest.mark.parametrize("choice", CLUSTERS, indirect=True)
def test_a_comparison_has_the_numbers_of_one_on_this_machine(
    choice: Choice, compare_config: Callable[..., CompareConfig], local_numbers: dict[str, Any], tmp_path: Path
) -> None:
    config = compare_config(tmp_path, launcher=choice.launcher, slurm=choice.slurm, ray=choice.ray)
    [found] = runner.compare(config, jobs=2, allow_weak_teacher=True)
    assert [row.method for row in found.rows] == ["none", "pkd"]
    assert numbers(tmp_path) == local_numbers
    assert "measuring the training step" in (tmp_path / "preparation" / LOG).read_text()  # not in this process


@pytest.mark.slow
@pytest.mark.parametrize("choice", CLUSTERS, indirect=True)
def test_a_failure_and_ctrl_c_are_those_of_this_machine(
    choice: Choice, compare_config: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    config = compare_config(tmp_path, methods=["none"], epochs=1000, eval_every=1000, seeds=[0, 1])
    (run, other), _ = plan_runs(config, config.parsed_methods(), "both")
    elsewhere = replace(other.config.data, root="nowhere")
    runs = [run, replace(other, config=replace(other.config, data=elsewhere))]
    failures: dict[int, str | None] = {}

    def stop(_: PlannedRun) -> bool:
        if failures and run.folder.last_checkpoint.exists():
            raise KeyboardInterrupt
        return False

    started: list[Process] = []
    with opened(choice) as launcher, (tmp_path / "console").open("w") as file:
        noting = noted(launcher, started)
        with pytest.raises(KeyboardInterrupt):
            run_all(
                runs, 2, lambda run, why: failures.update({run.config.seed: why}), Console(file=file), noting, stop=stop
            )
        assert all(process.poll() is not None for process in started)
    assert failures.keys() == {1}
    assert "nowhere" in str(failures[1])
    assert not run.finished
    assert "interrupted: " in " ".join((run.folder.path / LOG).read_text().split())


def noted(launcher: Launcher, started: list[Process]) -> Launcher:
    """Return a launcher that notes the processes that it starts."""

    class Noting:
        elsewhere = launcher.elsewhere
        continues = staticmethod(launcher.continues)

        def start(self, *arguments: Any) -> Process:
            started.append(launcher.start(*arguments))
            return started[-1]

    return Noting()
