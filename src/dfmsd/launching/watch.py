"""What the files of a run tell about its process, on a disk that it may share with another machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dfmsd.launching.process import LOG, POLL, Ended
from dfmsd.runfolder import RunFolder

LAG = 60.0
"""Seconds after which a shared disk shows what another machine has written."""


def epochs_done(run: RunFolder) -> int:
    """Read the number of epochs from the end of the log, whose last row may be incomplete."""
    try:
        with run.log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            epochs = [line.split(b",")[1] for line in file.read().splitlines()[:-1] if line.count(b",") > 1]
    except FileNotFoundError:
        return 0
    return max((int(epoch) for epoch in epochs if epoch.isdigit()), default=0)


def last_saved(run: RunFolder) -> float:
    """Return the time of the last checkpoint in seconds; 0 before there is one."""
    try:
        return run.last_checkpoint.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def await_file(file: Path) -> None:
    """Wait until this machine sees a file that has been written, perhaps by another one, at most for `LAG`."""
    deadline = time.monotonic() + LAG
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(POLL)


def failure(folder: Path, ended: Ended) -> str | None:
    """Say why a process has failed: what killed it, and the last line that it printed.

    Args:
        folder: of its log.
        ended: how it has ended.

    Returns:
        One line; None for success.
    """
    if ended.status == 0:
        return None
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    ending = f"ended by {ended.killed}: " if ended.killed else ""
    return f"{ending}{last.removeprefix('dfmsd: error: ')}; see {log}"
