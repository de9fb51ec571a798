"""Detection of losses and gradients that are not finite."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from dfmsd.engine.module import DistillationModule
from dfmsd.engine.restoring import StatefulCallback
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.utils.files import write_json

logger = logging.getLogger("dfmsd")

GRADIENT = "gradient"
"""Name under which the norm of the whole gradient, before clipping, is checked."""


class Step(NamedTuple):
    """A step whose values have not been checked yet."""

    number: int
    epoch: int
    stage: int
    """Counted from 1."""
    image_ids: list[int]
    skipped: bool
    """Whether this or another process skipped the optimizer step."""
    values: dict[str, Tensor]


class FiniteCheck(StatefulCallback):
    """End a run at a value that is not finite, after writing the step's values and image ids to ``failure/``.

    Values are copied from a GPU every ``interval`` steps, so that it does not have to wait, and before every
    checkpoint, so that none holds weights from such a step.

    Args:
        run: run folder.
        skip: number of steps that are skipped before the run ends, see `DistillationModule`.
        interval: steps between two checks.
    """

    saved = ("skipped",)

    def __init__(self, run: Path, skip: int = 0, interval: int = 20) -> None:
        self.run = RunFolder(run)
        self.skip = skip
        self.interval = interval
        self.rank = 0
        self.skipped = 0
        self.image_ids: list[int] = []
        self.pending: list[Step] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the rank of this process."""
        self.rank = trainer.global_rank

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step, and check the recorded ones when due."""
        assert isinstance(pl_module, DistillationModule)
        self.image_ids += batch.image_ids
        if not pl_module.ends_step:
            return
        gradient = {} if pl_module.gradient_norm is None else {GRADIENT: pl_module.gradient_norm}
        where = trainer.global_step - 1, trainer.current_epoch, pl_module.task.stage + 1
        self.pending.append(Step(*where, self.image_ids, pl_module.skipped, {**outputs["named"], **gradient}))
        self.image_ids = []
        if len(self.pending) >= self.interval or not outputs["named"]["loss"].is_cuda:
            self.check()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the remaining steps."""
        self.check()

    def state_dict(self) -> dict[str, Any]:
        """Check the remaining steps, and return the number of skipped ones."""
        self.check()
        return super().state_dict()

    def check(self) -> None:
        """Check the recorded steps.

        Raises:
            DfmsdError: a value is not finite, once more often than may be skipped.
        """
        steps, self.pending = self.pending, []
        for step in steps:
            values = torch.stack([value.float() for value in step.values.values()]).tolist()
            named = dict(zip(step.values, values, strict=True))
            bad = [name for name, value in named.items() if not math.isfinite(value)]
            if bad or step.skipped:
                terms = [name for name in bad if name != "loss"]
                self._report(step, named, terms or bad or ["the batch of another process"])

    def _report(self, step: Step, values: dict[str, float], bad: list[str]) -> None:
        suffix = f"-rank-{self.rank}" if self.rank else ""
        path = self.run.failure_folder / f"step-{step.number}{suffix}.json"
        path.parent.mkdir(exist_ok=True)
        where = {"step": step.number, "epoch": step.epoch, "stage": step.stage}
        readable = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        write_json(path, {**where, "not_finite": bad, "values": readable, "image_ids": step.image_ids})
        problem = f"step {step.number} (stage {step.stage}): {', '.join(bad)} is not finite"
        self.skipped += step.skipped
        if step.skipped and self.skipped <= self.skip:
            logger.warning("%s; skipped, %d of at most %d; see %s", problem, self.skipped, self.skip, path)
            return
        remedy = f"; {self.skip} such steps were skipped before" if self.skip else " or skip it (skip_nonfinite: 1)"
        raise DfmsdError(
            f"{problem}; lower optim.lr, lengthen optim.warmup, lower the loss's weight{remedy}; {path} has the "
            f"batch's image ids, {self.run.log_file} the steps before"
        )
