"""Runs of a search: their names, evaluations and checkpoints."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path

from dfmsd.engine.config import DistillConfig
from dfmsd.runfolder import RunFolder
from dfmsd.utils.lock import is_locked

POLL = 0.2
"""Seconds between two looks at a run that is being saved."""


@dataclass(frozen=True)
class NamedRun:
    """A run of a search.

    Attributes:
        name: what it is, such as ``trial 3``.
        config: of the run; its ``out`` is the run folder.
    """

    name: str
    config: DistillConfig

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Path(self.config.out))

    @property
    def ap(self) -> float | None:
        """AP of the finished run, 0..1; None if it could not be measured."""
        return (self.folder.read_metrics() or {}).get("AP")

    def __str__(self) -> str:
        return self.name


def evaluations(run: RunFolder) -> list[tuple[int, float]]:
    """Read epochs trained and AP, 0..1, of every evaluation of a run; the last row may be incomplete."""
    try:
        lines = run.epochs_file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [(int(row["epoch"]) + 1, float(row["AP"])) for row in rows if row.get("AP")]


def await_writer(run: RunFolder) -> None:
    """Wait until no process writes a run: after a kill of its parent, it saves the run before it ends."""
    while is_locked(run.path):
        time.sleep(POLL)


def remove_checkpoints(run: RunFolder) -> None:
    """Remove the checkpoints of a run, and keep its student and metrics."""
    for file in (run.last_checkpoint, run.previous_checkpoint, run.best_checkpoint):
        file.unlink(missing_ok=True)
