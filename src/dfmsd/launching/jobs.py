"""Runs in parallel processes: started, watched, taken up again and ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dfmsd.engine.config import DistillConfig
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import DfmsdError
from dfmsd.launching.launcher import Launcher, Process
from dfmsd.launching.process import PATIENCE, POLL, Ended
from dfmsd.launching.watch import await_file, epochs_done, failure, last_saved
from dfmsd.launching.worker import NO_REPORT
from dfmsd.runfolder import RunFolder
from dfmsd.utils.device import available_cores
from dfmsd.utils.lock import is_locked


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


def run_all(
    runs: Iterable[J],
    jobs: int,
    on_end: Callable[[J, str | None], None],
    console: Console,
    launcher: Launcher,
    *,
    unit: str = "runs",
    total: int | None = None,
    stop: Callable[[J], bool] | None = None,
    report: bool = True,
) -> None:
    """Run processes, ``jobs`` at a time; they end with this function, even on an error.

    A run whose process is killed goes on in another one, as long as each process gets to a new checkpoint.

    Args:
        runs: in the order of execution; each is taken when a process is free for it.
        jobs: number of parallel processes.
        on_end: called after each run, with the reason if it failed or was stopped.
        console: for progress.
        launcher: where the processes run.
        unit: what the progress counts.
        total: number of runs; None is their length.
        stop: called with each run several times a second; once it returns True, the run is saved and ended.
        report: each run writes its report.

    Raises:
        DfmsdError: a process cannot be started.
    """
    waiting, lost, running = iter(runs), list[J](), dict[Process, _Started[J]]()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress, _stopping(running):
        counted = progress.add_task(unit, total=length_hint(runs) if total is None else total)
        while True:
            while len(running) < jobs and (run := _take(lost) or next(waiting, None)) is not None:
                saved = last_saved(run.folder)
                process = _start(run, launcher, threads_per_job(jobs), *([] if report else [NO_REPORT]))
                if where := str(process):
                    console.print(f"{run}: {where}", highlight=False, markup=False)
                running[process] = _Started(run, progress.add_task(f"  {run}, epochs", total=run.config.epochs), saved)
            if not running and not lost:
                return
            time.sleep(POLL)
            for process, started in list(running.items()):
                progress.update(started.bar, completed=epochs_done(started.run.folder))
                if (ended := started.look_at(process, stop)) is None:
                    continue
                progress.remove_task(started.bar)
                del running[process]
                if started.is_lost(ended):
                    lost.append(started.run)
                    line = f"{started.run}: ended by {ended.killed}; it goes on from its last checkpoint"
                    console.print(line, highlight=False, markup=False)
                    continue
                progress.advance(counted)
                on_end(started.run, _outcome(started.run, ended))


def run_one(launcher: Launcher, arguments: Sequence[str], folder: Path) -> None:
    """Run one process to its end; it ends with this function, even on an error.

    Args:
        launcher: where it runs.
        arguments: of the interpreter.
        folder: of its log, which exists.

    Raises:
        DfmsdError: it cannot be started, or fails.
    """
    process = launcher.start(arguments, folder, threads_per_job(1))
    with _stopping([process]):
        while (ended := process.poll()) is None:
            time.sleep(POLL)
    if reason := failure(folder, ended):
        raise DfmsdError(reason)


@dataclass
class _Started(Generic[J]):
    """A run whose process has been started.

    Attributes:
        run: the run.
        bar: its progress.
        saved: time of the checkpoint that it starts from.
        stopped: it has been asked to end.
    """

    run: J
    bar: TaskID
    saved: float
    stopped: bool = False

    def look_at(self, process: Process, stop: Callable[[J], bool] | None) -> Ended | None:
        """Stop the process if it is time to, and return how it has ended; None while it runs."""
        if stop is not None and not self.stopped and stop(self.run):
            process.stop()
            self.stopped = True
        return process.poll()

    def is_lost(self, ended: Ended) -> bool:
        """Return whether the run was killed after a new checkpoint, from which another process can go on."""
        folder = self.run.folder
        return bool(ended.killed) and not (self.stopped or folder.finished) and last_saved(folder) > self.saved


def _start(run: Job, launcher: Launcher, threads: int, *options: str) -> Process:
    run.folder.path.mkdir(parents=True, exist_ok=True)
    if not run.folder.exists:
        write_config(run.config, run.folder.path)
    arguments = ["-m", "dfmsd.launching.worker", str(run.folder.path), *options]
    return launcher.start(arguments, run.folder.path, threads)


def _take(lost: list[J]) -> J | None:
    """Take the first run that no process writes any more: one whose parent was killed saves its run before it ends."""
    for index, run in enumerate(lost):
        if not is_locked(run.folder.path):
            return lost.pop(index)
    return None


def _outcome(run: Job, ended: Ended) -> str | None:
    """Return why a run has failed; None for one that has finished, whose results can then be read."""
    if ended.status == 0:
        await_file(run.folder.metrics_file)
    return failure(run.folder.path, ended)


@contextmanager
def _stopping(running: Collection[Process]) -> Iterator[None]:
    """Stop the processes at the end of the block; one that takes too long is killed, or all at another Ctrl-C."""
    try:
        yield
    finally:
        for process in running:
            process.stop()
        deadline = time.monotonic() + PATIENCE
        try:
            while any(process.poll() is None for process in running) and time.monotonic() < deadline:
                time.sleep(POLL)
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
