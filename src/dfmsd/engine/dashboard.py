"""Live dashboard of a run on a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dfmsd.distillation.balance import is_balance, term_groups
from dfmsd.engine.accumulation import count_steps
from dfmsd.engine.callbacks import EpochEnd
from dfmsd.engine.module import DistillationModule, correlations_as_mean
from dfmsd.evaluation.evaluate import percent

WINDOW = 100
"""Number of steps over which the speed is averaged."""
UNKNOWN = "-"


class Dashboard(pl.Callback):
    """Show stage, progress, remaining time, losses, correlation with the teachers and AP; a context manager.

    It must come after ``epoch_end`` in the list of callbacks, whose results it shows. Values are copied from the device
    every ``interval`` steps, so that a GPU does not have to wait.

    Args:
        console: a terminal. Lines printed on it in the meantime appear above the dashboard.
        title: for example the run folder.
        epoch_end: evaluates the student.
        interval: steps between two updates of the losses.
    """

    def __init__(self, console: Console, title: str, epoch_end: EpochEnd, interval: int = 20) -> None:
        self.title = title
        self.epoch_end = epoch_end
        self.interval = interval
        self.lines = {"status": "preparing", **dict.fromkeys(("stage", "epoch", "loss", "pearson", "AP"), UNKNOWN)}
        self.done = 0.0
        self.end: float | None = None
        self.speed = 0.0
        self._step_seconds: float | None = None
        self._evaluation_seconds = 0.0
        self._images = 0
        self._start = time.perf_counter()
        self._marks = deque([self._start], maxlen=WINDOW + 1)
        # standard output that is redirected to a file stays there
        self._live = Live(get_renderable=self.render, console=console, redirect_stdout=sys.stdout.isatty())

    def __enter__(self) -> Dashboard:
        """Start the display."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state on the terminal and stop the display."""
        self._show(status="finished" if kind is None else "stopped")
        self.end = None
        self._live.stop()

    def render(self) -> RenderableType:
        """Render the dashboard in the width of the terminal."""
        now, end = time.perf_counter(), self.end
        times = [f"elapsed {_clock(now - self._start)}"]
        times += [f"ETA {_clock(max(0.0, end - now))}"] if end is not None else []
        times += [f"{self.speed:.1f} images/s"] if self.speed else []
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(ratio=1)
        table.add_row(f"{math.floor(100 * self.done)}%", ProgressBar(total=1, completed=self.done))
        for name, line in {"time": "   ".join(times), **self.lines}.items():
            table.add_row(name, Text(line))
        return Panel(table, title=Text(self.title), title_align="left", border_style="dim")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the state of a new or resumed run."""
        self._restart_measurement()
        self._show_progress(trainer, pl_module, trainer.current_epoch)
        self._show_scores()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the speed measurement after an evaluation or at a new stage."""
        self._restart_measurement()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by a step, and update the losses when due."""
        assert isinstance(pl_module, DistillationModule)
        self._images += len(batch.images)
        if not pl_module.ends_step:
            return
        self._marks.append(time.perf_counter())
        self._step_seconds = (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1)
        self.speed, self._images = trainer.world_size * self._images / self._step_seconds, 0
        if batch_idx // pl_module.per_step % self.interval == 0 or self.lines["loss"] == UNKNOWN:
            shown = {name: value for name, value in outputs["named"].items() if not is_balance(name)}
            groups = term_groups(correlations_as_mean(shown))
            values = torch.stack([value.float() for value in groups.values()]).tolist()
            self._show_values(dict(zip(groups, values, strict=True)), trainer.optimizers[0].param_groups[0]["lr"])
        self._show_progress(trainer, pl_module, trainer.current_epoch)
        if trainer.is_last_batch and self.epoch_end.is_due(trainer, trainer.current_epoch):
            self._show(status="evaluating the student")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the metrics of the last evaluation."""
        if self.epoch_end.is_due(trainer, trainer.current_epoch):
            self._evaluation_seconds = time.perf_counter() - self._marks[-1]
            self._show_scores()
        self._show_progress(trainer, pl_module, trainer.current_epoch + 1)

    def _restart_measurement(self) -> None:
        self._marks = deque([time.perf_counter()], maxlen=WINDOW + 1)

    def _show(self, **lines: str) -> None:
        self.lines = {**self.lines, **lines}  # a new dict, since another thread renders it

    def _show_progress(self, trainer: pl.Trainer, module: pl.LightningModule, evaluated: int) -> None:
        """Show the progress, and estimate the remaining time from the steps and the evaluations after ``evaluated``."""
        assert isinstance(module, DistillationModule)
        assert trainer.max_epochs is not None
        steps = trainer.max_epochs * count_steps(int(trainer.num_training_batches), module.per_step)
        step = trainer.global_step
        self.done = step / steps
        if self._step_seconds is not None:
            evaluations = sum(self.epoch_end.is_due(trainer, epoch) for epoch in range(evaluated, trainer.max_epochs))
            seconds = (steps - step) * self._step_seconds + evaluations * self._evaluation_seconds
            self.end = time.perf_counter() + seconds
        index, stages = module.task.stage, module.task.stages
        alone = "" if stages[index].labels else ", without labels"
        self._show(
            status="training",
            stage=f"{index + 1}/{len(stages)}   teacher {', '.join(stages[index].teachers) or 'none'}{alone}",
            epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}   step {step}/{steps}",
        )

    def _show_values(self, values: dict[str, float], lr: float) -> None:
        correlations = {name: value for name, value in values.items() if name.endswith("pearson")}
        parts = [f"{name} {value:.4g}" for name, value in values.items() if name not in ("loss", *correlations)]
        self._show(
            loss=f"{values['loss']:.4g} = {' + '.join(parts)}   lr {lr:.3g}",
            pearson="   ".join(f"{value:.3f}{_teacher_suffix(name)}" for name, value in correlations.items())
            or UNKNOWN,
        )

    def _show_scores(self) -> None:
        scores = [(float(row["AP"]), row["epoch"]) for row in self.epoch_end.table.rows() if row["AP"]]
        if scores:
            best, epoch = max(scores, key=lambda score: score[0])
            self._show(AP=f"last {percent(scores[-1][0])}   best {percent(best)} (epoch {int(epoch) + 1})")


def _teacher_suffix(name: str) -> str:
    """Return the teacher's number in parentheses if there are several."""
    return f" ({name.removesuffix('.pearson')})" if "." in name else ""


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
