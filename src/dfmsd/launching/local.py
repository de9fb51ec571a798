"""Processes on this machine, none of which outlives the command."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfmsd.launching.process import Command, Ended, ask_to_end


@dataclass(frozen=True, eq=False)
class LocalProcess:
    """A process on this machine. Its standard input also ends when this process is killed."""

    process: subprocess.Popen[bytes]

    def poll(self) -> Ended | None:
        """Return how it has ended; None while it runs."""
        status = self.process.poll()
        return None if status is None else Ended.from_status(status)

    def stop(self) -> None:
        """Ask it to save its work and end."""
        ask_to_end(self.process)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def __str__(self) -> str:
        return ""


class LocalLauncher:
    """Starts processes on this machine."""

    elsewhere = False

    def start(self, arguments: Sequence[str], folder: Path, threads: int) -> LocalProcess:
        """Start a process, see `Launcher.start`."""
        return LocalProcess(Command(tuple(arguments), folder, Path.cwd(), threads).start())

    def continues(self, folder: Path) -> bool:
        """Return False: processes end with the command."""
        return False
