"""Evaluation and delivery after an epoch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from dfmsd.data.transforms import Sample
from dfmsd.detectors import save_detector
from dfmsd.engine.average import WeightAverage
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.restoring import StatefulCallback
from dfmsd.engine.steplog import CsvTable
from dfmsd.evaluation.evaluate import Metrics, evaluate, percent
from dfmsd.runfolder import RunFolder

PrintLine = Callable[[str], None]


class EpochEnd(StatefulCallback):
    """Save and evaluate the student after an epoch, and log its metrics.

    Args:
        run: run folder.
        loader: validation images.
        every: epochs between evaluations.
        print_line: prints a line.
        average: evaluate these weights instead of the student's own. None evaluates its own.
        skipped: epochs, counted from 0, after which the student is only saved, unless the run ends: those without
            labels, which leave its head as it is.

    Attributes:
        metrics: of the last evaluation.
        evaluated: epochs before the last evaluation.
    """

    saved = ("metrics", "evaluated")

    def __init__(
        self,
        run: Path,
        loader: DataLoader[Sample],
        every: int,
        print_line: PrintLine = print,
        average: WeightAverage | None = None,
        skipped: Collection[int] = (),
    ) -> None:
        self.run = run
        self.average = average
        self.skipped = skipped
        self.loader = loader
        self.every = every
        self.print_line = print_line
        self.table = CsvTable(RunFolder(run).epochs_file)
        self.metrics: Metrics | None = None
        self.evaluated = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the rows that a resumed run repeats."""
        if trainer.is_global_zero:
            self.table.truncate("epoch", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in the first process, share the metrics with the others, and write student and metrics."""
        assert isinstance(pl_module, DistillationModule)
        epoch, student = trainer.current_epoch, pl_module.task.student
        if trainer.is_global_zero:
            with self.average.applied(student) if self.average else nullcontext():
                save_detector(student, self.run)
                if self.is_due(trainer, epoch):
                    self.metrics = evaluate(student, self.loader)
                    self._log(trainer, pl_module, self.metrics)
        if not self.is_due(trainer, epoch):
            return
        self.metrics = trainer.strategy.broadcast(self.metrics)
        assert self.metrics is not None
        self.evaluated = epoch + 1
        # in every process, so that all agree on the checkpoint of the best epoch
        pl_module.log_dict(_measured(self.metrics), logger=False, sync_dist=True)

    def is_due(self, trainer: pl.Trainer, epoch: int) -> bool:
        """Return whether the student is evaluated after an epoch, counted from 0."""
        due = (epoch + 1) % self.every == 0 or epoch + 1 == trainer.max_epochs
        return trainer.should_stop or (due and epoch not in self.skipped)

    def is_current(self, trainer: pl.Trainer) -> bool:
        """Return whether the metrics are those of the epoch that has just ended, while its hooks are called."""
        return self.evaluated == trainer.current_epoch + 1

    def _log(self, trainer: pl.Trainer, module: DistillationModule, metrics: Metrics) -> None:
        scalars = {name: value for name, value in metrics.items() if name != "per_class"}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "stage": module.task.stage + 1}
        self.table.append([{**row, **scalars}])
        for logger in trainer.loggers:  # at once: Lightning does so after the checkpoint, where a signal ends the run
            logger.log_metrics({**_measured(metrics), "epoch": trainer.current_epoch}, trainer.global_step - 1)
            logger.save()
        self.print_line(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  stage {module.task.stage + 1}"
            f"  AP {percent(metrics['AP'])}  AP50 {percent(metrics['AP50'])}"
        )


def _measured(metrics: Metrics) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, float)}
