"""Runs in processes of their own, several at a time, none of which outlives the comparison."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dfmsd.comparison.runs import PlannedRun
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import PREEMPTED, DfmsdError, Stopped
from dfmsd.utils.device import available_cores

if sys.platform != "win32":
    import fcntl

LOG = "worker.log"
POLL = 0.2
"""Seconds between two looks at the processes."""
PATIENCE = 60.0
"""Seconds that a process that was asked to stop has for its running step."""

Ended = Callable[[PlannedRun, "str | None"], None]


def threads_of(jobs: int) -> int:
    """Give each of ``jobs`` processes its share of this process's cores; ``OMP_NUM_THREADS``, if set, wins."""
    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    return max(1, available_cores() // jobs)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other comparisons out of a folder, as long as this process or one that it started lives.

    Raises:
        DfmsdError: another one is at work, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise DfmsdError(f"out: cannot write to {folder} ({error.strerror}); choose another folder") from error
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DfmsdError(
                    f"{folder}: another comparison is at work there, or its last runs are just stopping; wait for it"
                ) from error
        yield file.fileno()


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1, as schedulers send them, end the block as Ctrl-C does: the runs save what they have.

    Outside of the main thread, in which alone Python allows it, signals stay as they are.

    Raises:
        Stopped: such a signal came.
    """

    def stop(*_: object) -> None:
        raise Stopped(PREEMPTED)

    main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if main and hasattr(signal, name)]
    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)


def run_all(runs: Sequence[PlannedRun], jobs: int, lock: int, ended: Ended, console: Console) -> None:
    """Make runs, ``jobs`` at a time; they end when this function does, however that is.

    Args:
        runs: what is to run, in this order.
        jobs: processes at a time.
        lock: the file descriptor of `locked`, which the processes keep open.
        ended: called after each run, with the reason if it failed.
        console: shows the progress.
    """
    waiting, running = deque(runs), dict[subprocess.Popen[bytes], tuple[PlannedRun, TaskID]]()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress, _stopping(running):
        total = progress.add_task("runs", total=len(runs))
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                process = _start(run, threads_of(jobs), lock)
                running[process] = run, progress.add_task(f"  {run}, epochs", total=run.config.epochs)
            time.sleep(POLL)
            for process, (run, bar) in list(running.items()):
                progress.update(bar, completed=_epochs_done(run.folder.path))
                if process.poll() is not None:
                    progress.remove_task(bar)
                    del running[process]
                    progress.advance(total)
                    ended(run, _failure(run, process.returncode))


def _start(run: PlannedRun, threads: int, lock: int) -> subprocess.Popen[bytes]:
    run.folder.path.mkdir(parents=True, exist_ok=True)
    if not run.folder.exists:
        write_config(run.config, run.folder.path)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (run.folder.path / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dfmsd.comparison.worker", str(run.folder.path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others once
            pass_fds=() if sys.platform == "win32" else (lock,),
        )


@contextlib.contextmanager
def _stopping(running: dict[subprocess.Popen[bytes], tuple[PlannedRun, TaskID]]) -> Iterator[None]:
    try:
        yield
    finally:
        _close([process.stdin for process in running])
        deadline = time.monotonic() + PATIENCE
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()


def _close(pipes: Sequence[IO[bytes] | None]) -> None:
    for pipe in pipes:
        if pipe is not None:
            pipe.close()


def _epochs_done(run: Path) -> int:
    """Count the epochs by the steps' log, whose last row may be cut short."""
    try:
        with (run / "log.csv").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            epochs = [line.split(b",")[1] for line in file.read().splitlines()[:-1] if line.count(b",") > 1]
    except FileNotFoundError:
        return 0
    return max((int(epoch) for epoch in epochs if epoch.isdigit()), default=0)


def _failure(run: PlannedRun, status: int) -> str | None:
    """Give the last line that a failed process wrote."""
    if status == 0:
        return None
    lines = (run.folder.path / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    ending = f"ended by signal {-status}: " if status < 0 else ""
    return f"{ending}{last.removeprefix('dfmsd: error: ')}; see {run.folder.path / LOG}"
