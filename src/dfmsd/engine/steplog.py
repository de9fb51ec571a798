"""Tables of a run: a CSV file that grows, and the log of every step."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dfmsd.engine.module import DistillationModule
from dfmsd.runfolder import RunFolder
from dfmsd.utils.files import write_text


class CsvTable:
    """A CSV file that grows by rows and, when a row has a new name, by columns.

    Args:
        path: the file; existing rows are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            with path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; columns that a row lacks stay empty."""
        columns = list(dict.fromkeys([*self.columns, *(name for row in rows for name in row)]))
        if columns != self.columns:
            self._write(columns, self.rows())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerows(rows)
            file.flush()
            os.fsync(file.fileno())  # on the disk before a checkpoint of a later step

    def truncate(self, column: str, below: int) -> None:
        """Keep only complete rows whose integer ``column`` is less than ``below``: a resumed run repeats the others."""
        if self.columns:
            complete = [row for row in self.rows() if None not in row.values()]  # a kill may cut the last row short
            self._write(self.columns, [row for row in complete if int(row[column]) < below])

    def rows(self) -> list[dict[str, str]]:
        """Read all rows."""
        if not self.columns:
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.columns = columns
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


class StepLog(pl.Callback):
    """Write the named losses of every step to ``log.csv``.

    Values are copied from the device every ``interval`` steps, so that a GPU does not have to wait.

    Args:
        run: run folder.
        interval: steps between two copies.
    """

    def __init__(self, run: Path, interval: int = 20) -> None:
        self.table = CsvTable(RunFolder(run).log_file)
        self.interval = interval
        self.lr = 0.0
        self.pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the rows that a resumed run repeats."""
        if trainer.is_global_zero:
            self.table.truncate("step", trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the learning rate: after the step it is already that of the next one."""
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step if the batch is its last one."""
        assert isinstance(pl_module, DistillationModule)
        if not pl_module.ends_step:
            return
        row = {
            "step": trainer.global_step - 1,
            "epoch": trainer.current_epoch,
            "stage": pl_module.task.stage + 1,
            "lr": f"{self.lr:.6g}",
        }
        self.pending.append((row, outputs["named"]))
        if len(self.pending) >= self.interval:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the pending rows."""
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the pending rows, which a run that resumes from this checkpoint does not repeat."""
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the steps that led to the exception."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        rows = []
        for row, named in self.pending:
            values = torch.stack([value.float() for value in named.values()]).tolist()
            rows.append({**row, **{name: f"{value:.6g}" for name, value in zip(named, values, strict=True)}})
        self.pending.clear()
        if trainer.is_global_zero and rows:
            self.table.append(rows)
