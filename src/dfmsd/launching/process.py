"""Python processes that save their work and end when their standard input ends, on whichever machine they run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dfmsd.errors import DfmsdError

LOG = "worker.log"
POLL = 0.2
"""Seconds between two looks at a process."""
PATIENCE = 60.0
"""Seconds for a stopping process to finish its current step."""


class Ended(NamedTuple):
    """How a process has ended.

    Attributes:
        status: its exit status; None if it did not end by itself.
        killed: what ended it, such as ``signal 9``.
    """

    status: int | None
    killed: str = ""

    @classmethod
    def from_status(cls, status: int) -> Ended:
        """Return the end of a subprocess, whose status is negative after a signal."""
        return cls(None, f"signal {-status}") if status < 0 else cls(status)


@dataclass(frozen=True)
class Command:
    """A Python process that any machine with the same disk can run.

    Args:
        arguments: of the interpreter, such as ``-m dfmsd.launching.worker RUN``.
        folder: of its log.
        directory: its working directory, which the paths in its config are relative to.
        threads: that it computes with.
    """

    arguments: tuple[str, ...]
    folder: Path
    directory: Path
    threads: int

    @property
    def log(self) -> Path:
        """What the process prints; each start appends."""
        return self.directory / self.folder / LOG

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process on this machine.

        Raises:
            DfmsdError: this machine does not have the folders.
        """
        for folder in (self.directory, self.log.parent):
            if not folder.is_dir():
                raise DfmsdError(f"host {socket.gethostname()} has no folder {folder}; use a disk that all hosts share")
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,  # Ctrl-C reaches only this process, which then stops the other
            )

    def run(self) -> int:
        """Run the process to its end, and return its status; if an exception interrupts this, it saves its work first.

        Raises:
            DfmsdError: this machine does not have the folders.
        """
        return wait_for(self.start())


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, and return its status; if an exception interrupts this, it saves its work first.

    A signal does not interrupt `subprocess.Popen.wait` where it is raised by a library, as Ray does.
    """
    try:
        while (status := process.poll()) is None:
            time.sleep(POLL)
        return status
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a process save its work and end; one that takes too long is killed."""
    ask_to_end(process)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to save its work and end, by the end of its standard input."""
    if process.stdin is not None:
        process.stdin.close()
