"""What happens beside the training loop: logs, evaluation and delivery after an epoch, and signals."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dfmsd.data.transforms import Sample
from dfmsd.detectors import save_detector
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.module import DistillationModule
from dfmsd.errors import INTERRUPTED, PREEMPTED
from dfmsd.evaluation.evaluate import Metrics, evaluate, percent
from dfmsd.utils.files import write_json, write_text

Say = Callable[[str], None]


class CsvTable:
    """A CSV file that grows by rows and, where a row brings a new name, by columns.

    Args:
        path: of the file; existing rows are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            with path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows; names that a row lacks stay empty."""
        columns = list(dict.fromkeys([*self.columns, *(name for row in rows for name in row)]))
        if columns != self.columns:
            self._write(columns, self.rows())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerows(rows)
            file.flush()
            os.fsync(file.fileno())  # on the disk before a checkpoint that has these steps behind it

    def keep(self, column: str, below: int) -> None:
        """Keep the rows whose integer ``column`` is below ``below``: a resumed run makes the others again.

        A row that a kill cut short is one of the others.
        """
        if self.columns:
            whole = [row for row in self.rows() if None not in row.values()]
            self._write(self.columns, [row for row in whole if int(row[column]) < below])

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
    """Write every step's named losses to ``log.csv``.

    Values are fetched from the device every ``interval`` steps, so that a GPU is not made to wait.

    Args:
        run: run folder.
        interval: steps between two looks.
    """

    def __init__(self, run: Path, interval: int = 20) -> None:
        self.table = CsvTable(run / "log.csv")
        self.interval = interval
        self.lr = 0.0
        self.pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget rows that this run makes again."""
        if trainer.is_global_zero:
            self.table.keep("step", trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate: at the end of the step it is the next one's."""
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step."""
        assert isinstance(pl_module, DistillationModule)
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
        """Write what is left."""
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write what is left: a run that resumes from there makes no earlier row again."""
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the steps that led there."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        rows = []
        for row, named in self.pending:
            values = torch.stack([value.float() for value in named.values()]).tolist()
            rows.append({**row, **{name: f"{value:.6g}" for name, value in zip(named, values, strict=True)}})
        self.pending.clear()
        if trainer.is_global_zero and rows:
            self.table.append(rows)


class EpochEnd(pl.Callback):
    """After an epoch: evaluate the student, write it, and log its metrics.

    Args:
        run: run folder.
        loader: of the validation images.
        every: epochs between evaluations.
        say: prints a line.
    """

    def __init__(self, run: Path, loader: DataLoader[Sample], every: int, say: Say = print) -> None:
        self.run = run
        self.loader = loader
        self.every = every
        self.say = say
        self.table = CsvTable(run / "epochs.csv")
        self.metrics: Metrics | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget rows that this run makes again."""
        if trainer.is_global_zero:
            self.table.keep("epoch", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate on the first process, share AP with the others, write student and metrics."""
        assert isinstance(pl_module, DistillationModule)
        epoch, student = trainer.current_epoch, pl_module.task.student
        if trainer.is_global_zero:
            save_detector(student, self.run)
        if not self.is_due(trainer, epoch):
            return
        if trainer.is_global_zero:
            self.metrics = evaluate(student, self.loader)
            self._note(trainer, pl_module, self.metrics)
        self.metrics = trainer.strategy.broadcast(self.metrics)
        assert self.metrics is not None
        known = {name: value for name, value in self.metrics.items() if isinstance(value, float)}
        # known to every process, or they would not agree on the checkpoint of the best epoch
        pl_module.log_dict({"AP": 0.0, **known}, sync_dist=True)

    def is_due(self, trainer: pl.Trainer, epoch: int) -> bool:
        """Whether the student is evaluated after an epoch, from 0."""
        return (epoch + 1) % self.every == 0 or epoch + 1 == trainer.max_epochs

    def _note(self, trainer: pl.Trainer, module: DistillationModule, metrics: Metrics) -> None:
        scalars = {name: value for name, value in metrics.items() if name != "per_class"}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "stage": module.task.stage + 1}
        self.table.append([{**row, **scalars}])
        self.say(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  stage {module.task.stage + 1}"
            f"  AP {percent(metrics['AP'])}  AP50 {percent(metrics['AP50'])}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Keep the last metrics in checkpoints."""
        return {"metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the last metrics from a checkpoint."""
        self.metrics = state_dict["metrics"]


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """A signal ended the run, which is saved; the student is as the last finished step left it.

    Args:
        status: exit status that says so.
    """

    def __init__(self, status: int = INTERRUPTED) -> None:
        super().__init__(status)
        self.status = status


class StopOnInterrupt(pl.Callback):
    """Note the signals that ask a run to stop, for `LastCheckpoint` to save and end it after the running step.

    These are Ctrl-C, of which a second one ends the run at once, and SIGTERM and SIGUSR1, as schedulers send them
    before they take a machine away.

    Attributes:
        asked: exit status that goes with the signal; 0 before there was one.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the signals, which Python allows in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
            self._former = {getattr(signal, name): signal.signal(getattr(signal, name), self._ask) for name in names}

    def _ask(self, number: int, _: Any) -> None:
        self.asked = INTERRUPTED if number == signal.SIGINT else PREEMPTED
        if number == signal.SIGINT:
            signal.signal(number, self._former.pop(number) or signal.SIG_DFL)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._former = {}


class BalanceReport(pl.Callback):
    """Write the weights that the automatic balance chose into ``balance.json``, and print them once a stage.

    Args:
        run: run folder.
        say: prints a line.
    """

    def __init__(self, run: Path, say: Say = print) -> None:
        self.path = run / "balance.json"
        self.say = say
        self.reported: set[int] = set()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Tell the weights when the measurement of this stage has just ended."""
        assert isinstance(pl_module, DistillationModule)
        task = pl_module.task
        balances = [lesson.balance for lesson in task.lessons if lesson.balance is not None]
        if not balances or task.stage in self.reported or not all(balance.settled for balance in balances):
            return
        self.reported.add(task.stage)
        if trainer.is_global_zero:
            self._write(task)
            self.say(f"stage {task.stage + 1}: balanced weights {_factors(task)}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of a stage that is too short to settle them."""
        assert isinstance(pl_module, DistillationModule)
        if trainer.is_global_zero:
            self._write(pl_module.task)

    def _write(self, task: DistillationTask) -> None:
        factors = _factors(task)
        if factors:
            chosen = json.loads(self.path.read_text()) if self.path.exists() else {}
            write_json(self.path, {**chosen, str(task.stage + 1): factors})


def _factors(task: DistillationTask) -> dict[str, float]:
    return {
        name: factor
        for lesson in task.lessons
        if lesson.balance is not None
        for name, factor in lesson.named(lesson.balance.factors()).items()
    }
