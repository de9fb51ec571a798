"""What a launcher is: it starts processes somewhere, looks after them and ends them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dfmsd.launching.process import Ended


class Process(Protocol):
    """A process that has been started, or waits for a machine; its text says where, unless it is this machine."""

    def poll(self) -> Ended | None:
        """Return how it has ended; None while it waits or runs."""

    def stop(self) -> None:
        """Ask it to save its work and end; return at once."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Where processes are started."""

    @property
    def elsewhere(self) -> bool:
        """Whether they run on other machines than this one, or may do so."""

    def start(self, arguments: Sequence[str], folder: Path, threads: int) -> Process:
        """Start ``python ARGUMENTS``, which has to end when its standard input does.

        Args:
            arguments: of the interpreter.
            folder: of the process's log, which exists.
            threads: its share of this machine's cores; other machines have their own numbers.

        Raises:
            DfmsdError: it cannot be started.
        """

    def continues(self, folder: Path) -> bool:
        """Return whether a process that an earlier, killed command started for a folder still waits or runs.

        Starting another one for the folder then means to take that one over.
        """
