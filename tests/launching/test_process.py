from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runs import plan_runs
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import INTERRUPTED, PREEMPTED, DfmsdError, Stopped
from dfmsd.launching import child, process, worker
from dfmsd.launching.local import LocalLauncher
from dfmsd.launching.process import LOG, Command, Ended
from dfmsd.launching.watch import epochs_done, failure
from dfmsd.runfolder import RunFolder

FOLLOWS = """
import sys, time
from pathlib import Path
from dfmsd.launching.child import carry_out

def work():
    try:
        Path("begun").touch()
        for _ in range(1200):
            time.sleep(0.05)
    except KeyboardInterrupt:
        Path("saved").touch()
        raise

sys.exit(carry_out(work))
"""
"""A process that works for a minute, unless it is interrupted."""


def await_file(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_saves_its_work_when_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = LocalLauncher().start(["-c", FOLLOWS], Path(), 3)
    await_file(tmp_path / "begun")
    started.process.send_signal(signal.SIGUSR2)  # SLURM's warning, to which the parent of the process reacts
    time.sleep(0.5)
    assert started.poll() is None
    started.stop()
    started.process.wait(60)
    assert started.poll() == Ended(INTERRUPTED)
    assert (tmp_path / "saved").exists()


def test_a_command_that_is_interrupted_lets_its_process_save(tmp_path: Path) -> None:
    """As by a scheduler: the command's own process gets the signal, not the one that works."""
    parent = (
        "import signal; signal.signal(2, signal.default_int_handler);"  # ignored if the tests run in the background
        "import sys; from pathlib import Path; from dfmsd.launching.process import Command;"
        "Command(('-c', sys.argv[1]), Path(), Path(sys.argv[2]), 1).run()"
    )
    with subprocess.Popen([sys.executable, "-c", parent, FOLLOWS, str(tmp_path)], stderr=subprocess.PIPE) as running:
        await_file(tmp_path / "begun")
        running.send_signal(2)
        running.communicate(timeout=60)
    assert running.returncode != 0
    assert (tmp_path / "saved").exists()


def test_a_process_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.05)
    deaf = Command(("-c", "import time; time.sleep(60)"), tmp_path, tmp_path, 1).start()
    process.end(deaf)
    assert Ended.from_status(deaf.returncode) == Ended(None, "signal 9")


def test_a_command_runs_where_its_folders_are(tmp_path: Path) -> None:
    run = tmp_path / "runs"
    run.mkdir()
    says = "import os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])"
    assert Command(("-c", says), Path("runs"), tmp_path, 3).run() == 0
    assert (run / LOG).read_text() == f"{tmp_path} 3\n"
    with pytest.raises(DfmsdError, match=r"host .* has no folder .*missing; use a disk that all hosts share"):
        Command(("-c", says), Path("missing"), tmp_path, 3).run()


def test_a_failure_is_the_last_line_of_the_log(tmp_path: Path) -> None:
    assert failure(tmp_path, Ended(0)) is None
    assert failure(tmp_path, Ended(None, "SLURM (TIMEOUT)")) == (
        f"ended by SLURM (TIMEOUT): no message; see {tmp_path / LOG}"
    )
    (tmp_path / LOG).write_text("epoch 1\ndfmsd: error: no detector at 'nowhere'\n\n")
    assert failure(tmp_path, Ended(2)) == f"no detector at 'nowhere'; see {tmp_path / LOG}"


def test_epochs_are_read_from_incomplete_log(tmp_path: Path) -> None:
    assert epochs_done(RunFolder(tmp_path)) == 0
    lines = ["step,epoch,stage,lr", *(f"{step},{step // 10},1,0.001" for step in range(500))]
    (tmp_path / "log.csv").write_text("\n".join(lines[:1]))
    assert epochs_done(RunFolder(tmp_path)) == 0
    (tmp_path / "log.csv").write_text("\n".join([*lines, "500,5"]))
    assert epochs_done(RunFolder(tmp_path)) == 49


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (None, 0, ""),
        (Stopped(PREEMPTED), PREEMPTED, ""),
        (DfmsdError("no detector\nat 'nowhere'"), 2, "dfmsd: error: no detector at 'nowhere'\n"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_status_says_how_the_work_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: Any, status: int, said: str
) -> None:
    def work() -> None:
        if isinstance(end, BaseException):
            raise end

    monkeypatch.setattr(child, "_follow_parent", lambda: None)
    assert child.carry_out(work) == status
    assert capsys.readouterr().err == said


def test_worker_resumes_its_run_and_writes_a_report(
    compare_config: Callable[..., CompareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compare_config(tmp_path, methods=["none"], epochs=1)
    [run], _ = plan_runs(config, config.parsed_methods(), "both")
    run.folder.path.mkdir(parents=True)
    write_config(run.config, run.folder.path)
    reported: list[Path] = []

    def distill(given: DistillConfig, **options: Any) -> None:
        assert Path(given.out) == run.folder.path
        assert options == {"resume": True, "allow_weak_teacher": True, "check_images": 1}

    monkeypatch.setattr(worker, "distill", distill)
    monkeypatch.setattr(worker, "run_report", reported.append)
    worker.work(run.folder.path, report=False)
    assert reported == []
    worker.work(run.folder.path)
    assert reported == [run.folder.path]
    monkeypatch.setattr(worker, "distill", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.work(run.folder.path)
    assert reported == [run.folder.path]
