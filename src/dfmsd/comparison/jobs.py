"""Runs in parallel processes, none of which outlives the comparison."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import IO, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dfmsd.comparison.worker import NO_REPORT
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import PREEMPTED, Stopped
from dfmsd.runfolder import RunFolder
from dfmsd.utils.device import available_cores
from dfmsd.utils.signals import preemptions

LOG = "worker.log"
POLL = 0.2
"""Seconds between two polls of the processes."""
PATIENCE = 60.0
"""Seconds for a stopping process to finish its current step."""


class Job(Protocol):
    """A run that a process carries out; its text names it."""

    @property
    def config(self) -> DistillConfig:
        """Config of the run; its ``out`` is the run folder."""

    @property
    def folder(self) -> RunFolder:
        """The run folder."""


J = TypeVar("J", bound=Job)


def threads_per_job(jobs: int) -> int:
    """Divide the cores of this process among ``jobs`` processes; ``OMP_NUM_THREADS`` overrides it."""
    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    return max(1, available_cores() // jobs)


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """End the block on the signals `preemptions`, as on Ctrl-C, so that the runs are saved.

    Has no effect outside the main thread, where Python does not allow signal handlers.

    Raises:
        Stopped: one of the signals arrived.
    """

    def stop(*_: object) -> None:
        raise Stopped(PREEMPTED)

    main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, stop) for number in (preemptions() if main else ())}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)


def run_all(
    runs: Iterable[J],
    jobs: int,
    on_end: Callable[[J, str | None], None],
    console: Console,
    *,
    unit: str = "runs",
    total: int | None = None,
    stop: Callable[[J], bool] | None = None,
    report: bool = True,
) -> None:
    """Run processes, ``jobs`` at a time; they end with this function, even on an error.

    Args:
        runs: in the order of execution; each is taken when a process is free for it.
        jobs: number of parallel processes.
        on_end: called after each run, with the reason if it failed or was stopped.
        console: for progress.
        unit: what the progress counts.
        total: number of runs; None is their length.
        stop: called with each run several times a second; once it returns True, the run is saved and ended.
        report: each run writes its report.
    """
    waiting, running = iter(runs), dict[subprocess.Popen[bytes], tuple[J, TaskID]]()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress, _stopping(running):
        counted = progress.add_task(unit, total=length_hint(runs) if total is None else total)
        while True:
            while len(running) < jobs and (run := next(waiting, None)) is not None:
                process = _start(run, threads_per_job(jobs), *([] if report else [NO_REPORT]))
                running[process] = run, progress.add_task(f"  {run}, epochs", total=run.config.epochs)
            if not running:
                return
            time.sleep(POLL)
            for process, (run, bar) in list(running.items()):
                progress.update(bar, completed=_epochs_done(run.folder))
                if stop is not None and stop(run):
                    _close([process.stdin])
                if process.poll() is not None:
                    progress.remove_task(bar)
                    del running[process]
                    progress.advance(counted)
                    on_end(run, _failure(run, process.returncode))


def _start(run: Job, threads: int, *options: str) -> subprocess.Popen[bytes]:
    run.folder.path.mkdir(parents=True, exist_ok=True)
    if not run.folder.exists:
        write_config(run.config, run.folder.path)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (run.folder.path / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dfmsd.comparison.worker", str(run.folder.path), *options],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops the others
        )


@contextlib.contextmanager
def _stopping(running: dict[subprocess.Popen[bytes], tuple[J, TaskID]]) -> Iterator[None]:
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


def _epochs_done(run: RunFolder) -> int:
    """Read the number of epochs from the end of the log, whose last row may be incomplete."""
    try:
        with run.log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            epochs = [line.split(b",")[1] for line in file.read().splitlines()[:-1] if line.count(b",") > 1]
    except FileNotFoundError:
        return 0
    return max((int(epoch) for epoch in epochs if epoch.isdigit()), default=0)


def _failure(run: Job, status: int) -> str | None:
    """Return the last line that a failed process printed; None for success."""
    if status == 0:
        return None
    lines = (run.folder.path / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    ending = f"ended by signal {-status}: " if status < 0 else ""
    return f"{ending}{last.removeprefix('dfmsd: error: ')}; see {run.folder.path / LOG}"
