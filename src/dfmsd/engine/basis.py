"""Fit of the bases that a stage's teachers are rotated into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.distillation.stages import steps_into_stage
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.accumulation import count_steps
from dfmsd.engine.module import DistillationModule
from dfmsd.losses.basis import FIT_IMAGES, Correlation
from dfmsd.runfolder import RunFolder
from dfmsd.utils.distributed import copy_from_first
from dfmsd.utils.files import write_json

WARMUP = 20
"""Steps that a student from the start of a run learns alone before its basis means something."""


class BasisFit(pl.Callback):
    """Fit the bases of a stage before its first step, in the student's basis of a new run after `WARMUP` steps.

    The first process fits, and the others take over its maps. The correlations before and after are printed and written
    to ``basis.json``.

    Args:
        run: run folder.
        print_line: prints a line.
    """

    def __init__(self, run: Path, print_line: Callable[[str], None] = print) -> None:
        self.run = RunFolder(run)
        self.print_line = print_line
        self.settled: set[int] = set()  # stages, on the host: reading a buffer would wait for the device at every step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Fit when it is time to."""
        assert isinstance(pl_module, DistillationModule)
        task = pl_module.task
        if task.stage in self.settled:
            return
        if not task.unfitted:  # fitted before the run was resumed
            self.settled.add(task.stage)
            return
        steps = count_steps(int(trainer.num_training_batches), pl_module.per_step)
        done = steps_into_stage(task.stages, trainer.current_epoch, batch_idx // pl_module.per_step, steps)
        task.warming_up = done < _warmup(task, steps)
        if task.warming_up:
            return
        bases = [lesson.criterion.basis for lesson in task.unfitted]
        if trainer.is_global_zero:
            data: CocoDataModule = trainer.datamodule  # type: ignore[attr-defined]
            batches = [batch.to(pl_module.device).channels_last() for batch in data.sample_batches(FIT_IMAGES)]
            self._report(task, task.fit_bases(batches))
        for basis in bases:
            assert basis is not None
            copy_from_first(basis)  # the processes' students differ in the statistics of their normalization
        self.settled.add(task.stage)

    def _report(self, task: DistillationTask, fits: dict[str, dict[str, Correlation]]) -> None:
        values: dict[str, dict[str, float | str]] = {}
        for lesson in task.lessons:
            if lesson.label not in fits:
                continue
            assert lesson.criterion.basis is not None
            levels = lesson.named(fits[lesson.label])
            reference = "former" if lesson.criterion.basis.former else "student"
            values |= {name: {**fit._asdict(), "reference": reference} for name, fit in levels.items()}
            changes = ", ".join(f"{name} {fit.before:.2f} -> {fit.after:.2f}" for name, fit in levels.items())
            whose = "former teacher" if reference == "former" else reference
            self.print_line(f"stage {task.stage + 1}: correlation in the basis of the {whose}: {changes}")
        write_json(self.run.basis_file, {**(self.run.read_basis() or {}), str(task.stage + 1): values})


def _warmup(task: DistillationTask, steps_per_epoch: int) -> int:
    """Return the steps before the fit: none after an earlier stage, and at most a quarter of the first one."""
    return 0 if task.stage else min(WARMUP, task.stages[0].epochs * steps_per_epoch // 4)
