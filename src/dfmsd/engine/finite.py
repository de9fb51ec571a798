"""Losses and gradients that are not finite: named, with the batch that made them; the run ends, or only the step."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from dfmsd.engine.module import DistillationModule
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import write_json

logger = logging.getLogger("dfmsd")

GRADIENT = "gradient"
"""Name of the norm of the whole gradient, before it is clipped."""


class Step(NamedTuple):
    """A step whose values have not been looked at yet."""

    number: int
    epoch: int
    stage: int
    """From 1."""
    image_ids: list[int]
    skipped: bool
    """Whether this process or another one left out the optimiser's step."""
    values: dict[str, Tensor]


class FiniteCheck(pl.Callback):
    """End a run at a value that is not finite, after writing the step's values and image ids to ``failure/``.

    Values are fetched from a GPU every ``interval`` steps, so that it is not made to wait, and before every checkpoint,
    so that none holds weights that came out of such a step.

    Args:
        run: run folder.
        skip: so many steps are left out before the run ends, see `DistillationModule`.
        interval: steps between two looks.
    """

    def __init__(self, run: Path, skip: int = 0, interval: int = 20) -> None:
        self.run = run
        self.skip = skip
        self.interval = interval
        self.rank = 0
        self.skipped = 0
        self.pending: list[Step] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn which process this is."""
        self.rank = trainer.global_rank

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step, and look when it is time."""
        assert isinstance(pl_module, DistillationModule)
        gradient = {} if pl_module.gradient_norm is None else {GRADIENT: pl_module.gradient_norm}
        where = trainer.global_step - 1, trainer.current_epoch, pl_module.task.stage + 1
        self.pending.append(Step(*where, batch.image_ids, pl_module.skipped, {**outputs["named"], **gradient}))
        if len(self.pending) >= self.interval or not outputs["named"]["loss"].is_cuda:
            self.look()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what is left."""
        self.look()

    def state_dict(self) -> dict[str, Any]:
        """Look, and keep the number of steps that were left out."""
        self.look()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def look(self) -> None:
        """Check the steps that were noted.

        Raises:
            DfmsdError: a value is not finite, once more than may be skipped.
        """
        steps, self.pending = self.pending, []
        for step in steps:
            values = torch.stack([value.float() for value in step.values.values()]).tolist()
            named = dict(zip(step.values, values, strict=True))
            bad = [name for name, value in named.items() if not math.isfinite(value)]
            if bad or step.skipped:
                self._tell(step, named, [name for name in bad if name != "loss"] or bad or ["another process's batch"])

    def _tell(self, step: Step, values: dict[str, float], bad: list[str]) -> None:
        suffix = f"-rank-{self.rank}" if self.rank else ""
        path = self.run / "failure" / f"step-{step.number}{suffix}.json"
        path.parent.mkdir(exist_ok=True)
        where = {"step": step.number, "epoch": step.epoch, "stage": step.stage}
        readable = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        write_json(path, {**where, "not_finite": bad, "values": readable, "image_ids": step.image_ids})
        found = f"step {step.number} (stage {step.stage}): {', '.join(bad)} is not finite"
        self.skipped += step.skipped
        if step.skipped and self.skipped <= self.skip:
            logger.warning("%s; left out, %d of at most %d; see %s", found, self.skipped, self.skip, path)
            return
        allow = f"; {self.skip} such steps were left out before" if self.skip else " or skip it (skip_nonfinite: 1)"
        raise DfmsdError(
            f"{found}; lower optim.lr, lengthen optim.warmup, lower the loss's weight{allow}; {path} has the batch's "
            f"image ids, {self.run / 'log.csv'} the steps before"
        )
