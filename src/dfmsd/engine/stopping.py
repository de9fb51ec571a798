"""Ending a run before its last epoch: when AP no longer rises, or when time is up."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

from dfmsd.engine.callbacks import EpochEnd, PrintLine
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.restoring import StatefulCallback
from dfmsd.evaluation.evaluate import percent
from dfmsd.utils.durations import HOUR, describe_duration


class Patience(StatefulCallback):
    """End a run when the last stage has not reached a better AP for some epochs.

    Earlier stages always take their full length. A resumed run that had no patience before counts from then on. It must
    come after ``epoch_end`` in the list of callbacks.

    Args:
        epochs: since the best AP, at least 1. The run ends at an evaluation.
        first: first epoch of the last stage, from 0; the AP of earlier epochs does not count.
        epoch_end: evaluates the student.
        print_line: prints why the run ends.
    """

    saved = ("best", "best_after")
    optional = True

    # not Lightning's EarlyStopping, which counts an old AP again in epochs without an evaluation and on resuming
    # replaces a changed patience by the saved one

    def __init__(self, epochs: int, first: int, epoch_end: EpochEnd, print_line: PrintLine = print) -> None:
        self.epochs = epochs
        self.first = first
        self.epoch_end = epoch_end
        self.print_line = print_line
        self.best = -1.0
        self.best_after: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a resumed run that had ended, unless its patience is longer now."""
        if self.best_after is None:
            self.best_after = max(self.first, trainer.current_epoch)
        if _just_evaluated(trainer, self.epoch_end):
            self._end_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note a better AP, or end the run."""
        done = trainer.current_epoch + 1
        if self.epoch_end.evaluated != done or done <= self.first:
            return
        metrics = self.epoch_end.metrics
        ap = None if metrics is None else metrics["AP"]
        if ap is not None and ap > self.best:
            self.best, self.best_after = ap, done
        self._end_if_due(trainer)

    def _end_if_due(self, trainer: pl.Trainer) -> None:
        done = self.epoch_end.evaluated
        assert self.best_after is not None
        if done != trainer.max_epochs and done - self.best_after >= self.epochs:
            _end(
                trainer,
                self.print_line,
                f"ended after epoch {done} of {trainer.max_epochs}: AP has not risen above {percent(self.best)} since "
                f"epoch {self.best_after} (patience: {self.epochs})",
            )


class TimeLimit(StatefulCallback, Timer):
    """End a run after the last epoch that fits into its time, judging by the mean duration of its epochs.

    The time before an interruption counts, too, unless the run had no limit then; at least one epoch is trained. It
    must come before ``epoch_end`` in the list of callbacks, which evaluates the epoch that turns out to be the last.

    Args:
        hours: of training and evaluation, above 0.
        epoch_end: evaluates the student.
        print_line: prints why the run ends.
    """

    saved = ("time_elapsed", "since")
    optional = True

    def __init__(self, hours: float, epoch_end: EpochEnd, print_line: PrintLine = print) -> None:
        super().__init__(duration=None, verbose=False)
        self.hours = hours
        self.epoch_end = epoch_end
        self.print_line = print_line
        self.since: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; end a resumed run that had ended, unless its time is longer now."""
        super().on_train_start(trainer, pl_module)
        if self.since is None:
            self.since = trainer.current_epoch
        if _just_evaluated(trainer, self.epoch_end):
            self._end_if_due(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, **kwargs: Any) -> None:
        """End the run in all processes if the next epoch would not fit."""
        self._end_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def _end_if_due(self, trainer: pl.Trainer, module: pl.LightningModule, done: int) -> None:
        assert self.since is not None
        timed = done - self.since
        elapsed = self.time_elapsed()
        over = trainer.strategy.broadcast(timed > 0 and elapsed * (timed + 1) / timed > self.hours * HOUR)
        if over and done != trainer.max_epochs:
            _end(
                trainer,
                self.print_line,
                f"ended after epoch {done} of {trainer.max_epochs}: {describe_duration(elapsed)} have passed, and "
                f"one more epoch would exceed {self.hours:g} h (max_hours){_untrained(module)}",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the time so far and the epoch that it begins with, for a checkpoint."""
        return {**Timer.state_dict(self), "since": self.since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the time from a checkpoint."""
        Timer.load_state_dict(self, state_dict)
        self.since = state_dict["since"]


def _end(trainer: pl.Trainer, print_line: PrintLine, reason: str) -> None:
    trainer.should_stop = True
    if trainer.is_global_zero:
        print_line(reason)


def _untrained(module: pl.LightningModule) -> str:
    """Say that the student's head is untrained, if no stage so far had labels."""
    assert isinstance(module, DistillationModule)
    task = module.task
    trained = any(stage.labels for stage in task.stages[: task.stage + 1])
    return "" if trained else "; no stage with labels was reached, so the student's head is untrained"


def _just_evaluated(trainer: pl.Trainer, epoch_end: EpochEnd) -> bool:
    """Return whether a resumed run is at the end of an epoch, with the metrics of its current weights."""
    return not trainer.fit_loop.restarting and 0 < epoch_end.evaluated == trainer.current_epoch
