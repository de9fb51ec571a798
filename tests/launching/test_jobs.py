from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runs import PlannedRun, plan_runs
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.errors import PREEMPTED, DfmsdError, Stopped
from dfmsd.launching import jobs
from dfmsd.launching.jobs import run_all, run_one, threads_per_job
from dfmsd.launching.local import LocalLauncher
from dfmsd.launching.process import LOG, Ended
from dfmsd.utils.device import available_cores
from dfmsd.utils.lock import locked
from dfmsd.utils.signals import preemptible

EPOCHS = 40
"""Enough that a run is still training when the second epoch is noticed."""


WORKER = """#!/bin/sh
# started as: python -m dfmsd.launching.worker RUN
case $3 in
*broken) echo "dfmsd: error: no detector at 'nowhere'" >&2; exit 2 ;;
*killed) echo "epoch 1"; kill -9 $$ ;;
*) echo "$1 $2 with $OMP_NUM_THREADS" >"$3/metrics.json" ;;
esac
"""


def test_runs_end_independently(
    compare_config: Callable[..., CompareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(WORKER)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(jobs, "POLL", 0.02)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    config = compare_config(tmp_path, methods=["none"], epochs=1)
    [run], _ = plan_runs(config, config.parsed_methods(), "both")
    names = ("broken", "first", "killed", "second")
    runs = [replace(run, config=replace(run.config, out=str(tmp_path / name))) for name in names]
    ended: dict[str, str | None] = {}
    with (tmp_path / "console").open("w") as file:
        run_all(
            runs, 2, lambda done, why: ended.update({done.folder.path.name: why}), Console(file=file), LocalLauncher()
        )
    assert ended == {
        "broken": f"no detector at 'nowhere'; see {tmp_path / 'broken' / LOG}",
        "first": None,
        "killed": f"ended by signal 9: epoch 1; see {tmp_path / 'killed' / LOG}",
        "second": None,
    }
    for name in ("first", "second"):
        assert (tmp_path / name / "metrics.json").read_text() == "-m dfmsd.launching.worker with 3\n"
        assert read_config(DistillConfig, tmp_path / name / "config.yaml").epochs == 1


@pytest.mark.slow
def test_failed_run_does_not_stop_others(compare_config: Callable[..., CompareConfig], tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["none"], epochs=1)
    [run], _ = plan_runs(config, config.parsed_methods(), "both")
    stages = [StageConfig(1, teacher="nowhere")]
    broken = replace(run, config=replace(run.config, out=str(tmp_path / "broken"), stages=stages))
    ended: dict[str, str | None] = {}
    with (tmp_path / "console").open("w") as file:
        run_all(
            [broken, run],
            2,
            lambda done, why: ended.update({done.folder.path.name: why}),
            Console(file=file),
            LocalLauncher(),
        )
    assert ended.keys() == {"broken", run.folder.path.name}
    assert "no detector at 'nowhere'" in str(ended["broken"])
    assert str(ended["broken"]).endswith(str(tmp_path / "broken" / LOG))
    assert ended[run.folder.path.name] is None
    assert run.finished


@pytest.mark.slow
def test_run_resumes_after_ctrl_c(
    compare_config: Callable[..., CompareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compare_config(tmp_path, methods=["pkd"], epochs=EPOCHS, eval_every=EPOCHS)
    [_, run], _ = plan_runs(config, config.parsed_methods(), "both")
    ended: dict[str, str | None] = {}

    def note(done: PlannedRun, failure: str | None) -> None:
        ended[done.folder.path.name] = failure

    pressed: list[bool] = []

    def press_ctrl_c_after_an_epoch(seconds: float) -> None:
        if not pressed and (run.folder.path / "last.ckpt").exists():
            pressed.append(True)
            raise KeyboardInterrupt
        time.sleep(seconds)

    console = Console(file=(tmp_path / "console").open("w"))
    monkeypatch.setattr(jobs, "POLL", 0.02)
    clock = SimpleNamespace(sleep=press_ctrl_c_after_an_epoch, monotonic=time.monotonic)
    monkeypatch.setattr(jobs, "time", clock)
    with pytest.raises(KeyboardInterrupt):
        run_all([run], 1, note, console, LocalLauncher())
    assert not ended
    said = (run.folder.path / LOG).read_text()
    assert "interrupted: " in " ".join(said.split())
    assert f"epoch {EPOCHS}/{EPOCHS}" not in said
    assert not run.finished

    monkeypatch.undo()
    run_all([run], available_cores(), note, console, LocalLauncher())  # one thread each
    assert ended[run.folder.path.name] is None
    assert run.finished
    said = (run.folder.path / LOG).read_text()
    assert said.count("pre-flight") == 1  # it resumed instead of starting again
    assert said.count(f"epoch {EPOCHS}/{EPOCHS}") == 1
    with (run.folder.path / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(2 * EPOCHS))
    assert (run.folder.path / "report.html").exists()


DONE = Ended(0)


@dataclass(eq=False)
class FakeProcess:
    """A process that ends as it is told: after a number of looks, when it is stopped, or when it is killed."""

    folder: Path
    end: Ended = DONE
    looks: int = 1
    told: list[str] = field(default_factory=list)
    where: str = ""

    def poll(self) -> Ended | None:
        if self.told:
            return Ended(130)
        self.looks -= 1
        return self.end if self.looks < 0 else None

    def stop(self) -> None:
        self.told.append("stop")

    def kill(self) -> None:
        self.told.append("kill")

    def __str__(self) -> str:
        return self.where


@dataclass
class FakeLauncher:
    """Starts processes that do nothing but end; they leave results unless they are to fail.

    Attributes:
        make: makes the process of a folder.
        started: the processes, and the arguments of each.
    """

    make: Callable[[Path], FakeProcess] = FakeProcess
    started: list[FakeProcess] = field(default_factory=list)
    arguments: list[list[str]] = field(default_factory=list)
    elsewhere: bool = True

    def start(self, arguments: Sequence[str], folder: Path, threads: int) -> FakeProcess:
        self.arguments.append(list(arguments))
        process = self.make(folder)
        self.started.append(process)
        if process.end == DONE:
            (folder / "metrics.json").write_text("{}")
        return process

    def continues(self, folder: Path) -> bool:
        return False


@pytest.fixture
def runs(
    compare_config: Callable[..., CompareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[PlannedRun]:
    """Two runs, and short waits."""
    monkeypatch.setattr(jobs, "POLL", 0.01)
    config = compare_config(tmp_path, methods=["mgd[ratio=0]"])
    return plan_runs(config, config.parsed_methods(), "both")[0]


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    with (tmp_path / "console").open("w+") as file:
        yield Console(file=file, width=200)


def said(console: Console) -> str:
    console.file.seek(0)
    return console.file.read()


def test_runs_are_taken_one_by_one_and_can_be_ended(runs: list[PlannedRun], console: Console) -> None:
    told: list[str] = []

    def one_by_one() -> Iterator[PlannedRun]:
        for run in runs:
            told.append(f"begins {run}")
            yield run

    launcher = FakeLauncher(lambda folder: FakeProcess(folder, Ended(130), 3))
    run_all(
        one_by_one(),
        1,
        lambda run, why: told.append(f"{run} {why}"),
        console,
        launcher,
        total=2,
        stop=lambda run: True,
        report=False,
    )
    ends = [f"{run} no message; see {run.folder.path / LOG}" for run in runs]
    assert told == [f"begins {runs[0]}", ends[0], f"begins {runs[1]}", ends[1]]
    assert [process.told for process in launcher.started] == [["stop"]] * 2
    assert [arguments[2:] for arguments in launcher.arguments] == [
        [str(run.folder.path), "--no-report"] for run in runs
    ]


def test_a_killed_run_goes_on_as_long_as_it_gets_further(runs: list[PlannedRun], console: Console) -> None:
    """Three processes are lost: two after a checkpoint, the third before its own."""
    run, others = runs[0], runs[1:]
    lost = iter([1.0, 2.0, None])

    def make(folder: Path) -> FakeProcess:
        if folder != run.folder.path:
            return FakeProcess(folder)
        if time_of_checkpoint := next(lost):
            (folder / "last.ckpt").touch()
            os.utime(folder / "last.ckpt", (time_of_checkpoint, time_of_checkpoint))
        return FakeProcess(folder, Ended(None, "signal 9"), where="job 7")

    ended: dict[str, str | None] = {}
    launcher = FakeLauncher(make)
    run_all(runs, 2, lambda run, why: ended.update({str(run): why}), console, launcher)
    assert [process.folder for process in launcher.started].count(run.folder.path) == 3
    assert ended == {
        str(run): f"ended by signal 9: no message; see {run.folder.path / LOG}",
        **{str(other): None for other in others},
    }
    text = said(console)
    assert text.count("ended by signal 9; it goes on from its last checkpoint") == 2
    assert text.count(f"{run}: job 7") == 3


def test_a_killed_run_waits_for_the_process_that_still_saves_it(
    runs: list[PlannedRun], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[0]
    ends = iter([Ended(None, "lost host"), DONE])

    def make(folder: Path) -> FakeProcess:
        (folder / "last.ckpt").touch()
        return FakeProcess(folder, next(ends))

    launcher = FakeLauncher(make)
    started: list[int] = []
    with ExitStack() as saving:
        saving.enter_context(locked(run.folder.path))

        def sleep(_: float) -> None:
            started.append(len(launcher.started))
            if len(started) == 10:
                saving.close()

        monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        run_all([run], 1, lambda *_: None, console, launcher)
    assert started[:10] == [1] * 10
    assert len(launcher.started) == 2


def test_an_error_stops_the_others_and_kills_those_that_take_too_long(
    runs: list[PlannedRun], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.05)

    class Stubborn(FakeProcess):
        def poll(self) -> Ended | None:
            return None

    def make(folder: Path) -> FakeProcess:
        if launcher.started:
            raise DfmsdError("sbatch refuses")
        return Stubborn(folder, Ended(1))

    launcher = FakeLauncher(make)
    with pytest.raises(DfmsdError, match="sbatch refuses"):
        run_all(runs, 2, lambda *_: None, console, launcher)
    [process] = launcher.started
    assert process.told == ["stop", "kill"]


def test_one_process_fails_with_its_last_line(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("loads\ndfmsd: error: teacher x measures AP 0.0\n\n")
    run_one(FakeLauncher(), ["-m", "work"], tmp_path)
    with pytest.raises(DfmsdError, match=r"^teacher x measures AP 0\.0; see .*worker\.log$"):
        run_one(FakeLauncher(lambda folder: FakeProcess(folder, Ended(2))), ["-m", "work"], tmp_path)


def test_brackets_in_method_names_are_not_markup(runs: list[PlannedRun], tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("w+") as file:
        run_all(runs[1:], 1, lambda *_: None, Console(file=file, force_terminal=True, width=120), FakeLauncher())
        file.seek(0)
        assert "both: mgd[ratio=0], seed 0, epochs" in file.read()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_scheduler_signal_ends_runs_and_restores_handler(
    runs: list[PlannedRun], console: Console, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)
    former = signal.getsignal(number)
    launcher = FakeLauncher(lambda folder: FakeProcess(folder, Ended(1), 5))
    clock = SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), number), monotonic=time.monotonic)
    monkeypatch.setattr(jobs, "time", clock)
    with pytest.raises(Stopped) as stopped, preemptible():
        run_all(runs, 1, lambda *_: None, console, launcher)
    assert stopped.value.status == PREEMPTED
    assert [process.told for process in launcher.started] == [["stop"]]
    assert signal.getsignal(number) is former


@pytest.mark.slow
def test_command_exits_with_75_after_sigterm(compare_config: Callable[..., CompareConfig], tmp_path: Path) -> None:
    config = compare_config(tmp_path / "out", methods=["none"], epochs=EPOCHS, eval_every=EPOCHS)
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(asdict(config)))
    command = [sys.executable, "-m", "dfmsd", "compare", "--config", str(tmp_path / "compare.yaml")]
    run = tmp_path / "out" / "none" / "seed-0"
    with subprocess.Popen([*command, "--allow-weak-teacher"], stderr=subprocess.PIPE, text=True) as process:
        while not (run / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == PREEMPTED
    assert "repeat the command to resume" in " ".join(said.split())
    assert "interrupted: " in " ".join((run / LOG).read_text().split())
    assert not (run / "metrics.json").exists()


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_per_job(count) for count in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]


@pytest.mark.parametrize(("chosen", "threads"), [("3", 3), ("2,1", 2), ("", 4), ("many", 4), ("0", 4)])
def test_omp_num_threads_overrides_cores(monkeypatch: pytest.MonkeyPatch, chosen: str, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert threads_per_job(2) == threads
