from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from dfmsd.comparison import jobs, worker
from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.jobs import LOG, preemptible, run_all, threads_per_job
from dfmsd.comparison.runs import PlannedRun, plan_runs
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import INTERRUPTED, PREEMPTED, DfmsdError, Stopped
from dfmsd.runfolder import RunFolder
from dfmsd.utils.device import available_cores

EPOCHS = 40
"""Enough that a run is still training when the second epoch is noticed."""


WORKER = """#!/bin/sh
# started as: python -m dfmsd.comparison.worker RUN
case $3 in
*broken) echo "dfmsd: error: no detector at 'nowhere'" >&2; exit 2 ;;
*killed) echo "epoch 1"; kill -9 $$ ;;
*) echo "$1 $2 with $OMP_NUM_THREADS" >"$3/done" ;;
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
        run_all(runs, 2, lambda done, why: ended.update({done.folder.path.name: why}), Console(file=file))
    assert ended == {
        "broken": f"no detector at 'nowhere'; see {tmp_path / 'broken' / LOG}",
        "first": None,
        "killed": f"ended by signal 9: epoch 1; see {tmp_path / 'killed' / LOG}",
        "second": None,
    }
    for name in ("first", "second"):
        assert (tmp_path / name / "done").read_text() == "-m dfmsd.comparison.worker with 3\n"
        assert read_config(DistillConfig, tmp_path / name / "config.yaml").epochs == 1


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (None, 0, ""),
        (Stopped(PREEMPTED), PREEMPTED, ""),
        (DfmsdError("no detector\nat 'nowhere'"), 2, "dfmsd: error: no detector at 'nowhere'\n"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_worker_resumes_its_run_and_writes_a_report(
    compare_config: Callable[..., CompareConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: Any,
    status: int,
    said: str,
) -> None:
    config = compare_config(tmp_path, methods=["none"], epochs=1)
    [run], _ = plan_runs(config, config.parsed_methods(), "both")
    run.folder.path.mkdir(parents=True)
    write_config(run.config, run.folder.path)
    reported: list[Path] = []

    def distill(given: DistillConfig, **options: Any) -> Any:
        assert Path(given.out) == run.folder.path
        assert options == {"resume": True, "allow_weak_teacher": True, "check_images": 1}
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(worker, "distill", distill)
    monkeypatch.setattr(worker, "run_report", reported.append)
    monkeypatch.setattr(worker, "_follow_parent", lambda: None)
    assert worker.main(run.folder.path, report=False) == status
    assert reported == []
    capsys.readouterr()
    assert worker.main(run.folder.path) == status
    assert reported == [run.folder.path] * (status == 0)
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_failed_run_does_not_stop_others(compare_config: Callable[..., CompareConfig], tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["none"], epochs=1)
    [run], _ = plan_runs(config, config.parsed_methods(), "both")
    stages = [StageConfig(1, teacher="nowhere")]
    broken = replace(run, config=replace(run.config, out=str(tmp_path / "broken"), stages=stages))
    ended: dict[str, str | None] = {}
    with (tmp_path / "console").open("w") as file:
        run_all([broken, run], 2, lambda done, why: ended.update({done.folder.path.name: why}), Console(file=file))
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

    def press_ctrl_c_after_an_epoch(seconds: float) -> None:
        if (run.folder.path / "last.ckpt").exists():
            raise KeyboardInterrupt
        time.sleep(seconds)

    console = Console(file=(tmp_path / "console").open("w"))
    monkeypatch.setattr(jobs, "POLL", 0.02)
    clock = SimpleNamespace(sleep=press_ctrl_c_after_an_epoch, monotonic=time.monotonic)
    monkeypatch.setattr(jobs, "time", clock)
    with pytest.raises(KeyboardInterrupt):
        run_all([run], 1, note, console)
    assert not ended
    said = (run.folder.path / LOG).read_text()
    assert "interrupted: " in " ".join(said.split())
    assert f"epoch {EPOCHS}/{EPOCHS}" not in said
    assert not run.finished

    monkeypatch.undo()
    run_all([run], available_cores(), note, console)  # one thread each
    assert ended[run.folder.path.name] is None
    assert run.finished
    said = (run.folder.path / LOG).read_text()
    assert said.count("pre-flight") == 1  # it resumed instead of starting again
    assert said.count(f"epoch {EPOCHS}/{EPOCHS}") == 1
    with (run.folder.path / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(2 * EPOCHS))
    assert (run.folder.path / "report.html").exists()


def idle(run: PlannedRun, threads: int) -> subprocess.Popen[bytes]:
    """Start a process that waits until its parent asks it to end, or for half a second."""
    code = "import select, sys; select.select([sys.stdin], [], [], 0.5)"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_runs_are_taken_one_by_one_and_can_be_ended(
    compare_config: Callable[..., CompareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[tuple[str, ...]] = []

    def start(run: PlannedRun, threads: int, *given: str) -> subprocess.Popen[bytes]:
        options.append(given)
        code = "import select, sys; sys.exit(130 if select.select([sys.stdin], [], [], 20)[0] else 0)"
        run.folder.path.mkdir(parents=True, exist_ok=True)
        (run.folder.path / LOG).write_text("interrupted: saved")
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)

    monkeypatch.setattr(jobs, "_start", start)
    monkeypatch.setattr(jobs, "POLL", 0.02)
    config = compare_config(tmp_path)
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    told: list[str] = []

    def one_by_one() -> Iterator[PlannedRun]:
        for run in runs:
            told.append(f"begins {run}")
            yield run

    with (tmp_path / "console").open("w") as file:
        run_all(
            one_by_one(),
            1,
            lambda run, why: told.append(f"{run} {why}"),
            Console(file=file),
            total=2,
            stop=lambda run: True,
            report=False,
        )
    ends = [f"{run} interrupted: saved; see {run.folder.path / LOG}" for run in runs]
    assert told == [f"begins {runs[0]}", ends[0], f"begins {runs[1]}", ends[1]]
    assert options == [("--no-report",)] * 2


def test_brackets_in_method_names_are_not_markup(
    compare_config: Callable[..., CompareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_start", idle)
    config = compare_config(tmp_path, methods=["mgd[ratio=0]"])
    _, run = plan_runs(config, config.parsed_methods(), "both")[0]
    with (tmp_path / "console").open("w+") as file:
        run_all([run], 1, lambda *_: None, Console(file=file, force_terminal=True, width=120))
        file.seek(0)
        assert "both: mgd[ratio=0], seed 0, epochs" in file.read()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_scheduler_signal_ends_runs_and_restores_handler(
    compare_config: Callable[..., CompareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)
    former = signal.getsignal(number)
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        started.append(idle(*arguments))
        return started[-1]

    clock = SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), number), monotonic=time.monotonic)
    monkeypatch.setattr(jobs, "_start", start)
    monkeypatch.setattr(jobs, "time", clock)
    config = compare_config(tmp_path)
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    with pytest.raises(Stopped) as stopped, preemptible(), (tmp_path / "console").open("w") as file:
        run_all(runs, 1, lambda *_: None, Console(file=file))
    assert stopped.value.status == PREEMPTED
    assert [process.returncode for process in started] == [0]  # asked to end, and waited for
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


def test_epochs_are_read_from_incomplete_log(tmp_path: Path) -> None:
    assert jobs._epochs_done(RunFolder(tmp_path)) == 0
    lines = ["step,epoch,stage,lr", *(f"{step},{step // 10},1,0.001" for step in range(500))]
    (tmp_path / "log.csv").write_text("\n".join(lines[:1]))
    assert jobs._epochs_done(RunFolder(tmp_path)) == 0
    (tmp_path / "log.csv").write_text("\n".join([*lines, "500,5"]))
    assert jobs._epochs_done(RunFolder(tmp_path)) == 49


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_per_job(count) for count in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]


@pytest.mark.parametrize(("chosen", "threads"), [("3", 3), ("2,1", 2), ("", 4), ("many", 4), ("0", 4)])
def test_omp_num_threads_overrides_cores(monkeypatch: pytest.MonkeyPatch, chosen: str, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert threads_per_job(2) == threads
