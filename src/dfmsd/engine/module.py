"""Lightning module around a distillation task."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dfmsd.data.multiscale import MultiScale
from dfmsd.distillation.balance import BalanceSchedule, balance_share
from dfmsd.distillation.checks import check_optimizer
from dfmsd.distillation.rollback import StepState, restore_step, step_state
from dfmsd.distillation.stages import learning_rate_factor, stage_of_epoch, starts_stage
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.accumulation import count_steps, ends_step, mean_values, step_batches
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.optimizer import build_optimizer, forget_steps
from dfmsd.engine.rng import seed_everything
from dfmsd.types import Batch
from dfmsd.utils.distributed import shared_step

LOG_EVERY = 10
"""Steps between two points of the loggers' curves."""


class DistillationModule(pl.LightningModule):
    """Train the `trainable` part of a task: optimizer, learning-rate schedule and stages.

    Args:
        task: the task to train.
        optim: optimizer settings.
        seed: before every step the global random generators are seeded from this seed, the epoch, the batch and the
            rank, so that a resumed run draws the same masks.
        skip_nonfinite: skip steps with a loss or gradient that is not finite: neither weights, statistics nor loss
            balances change. Every step then waits for the device.
        sync_statistics: compute the statistics of the losses over the batches of all processes, see `shared_step` in
            `dfmsd.utils.distributed`.
        per_step: batches per optimizer step, at least 1; the trainer's ``accumulate_grad_batches``.
        multi_scale: resizes the batches.
        balance_schedule: how the target ratio of the teachers' balances changes during the run.

    Attributes:
        ends_step: whether an optimizer step follows the current batch.
        gradient_norm: norm of the last step's gradient before clipping; None with a loss scaler (fp16), which handles
            overflows itself.
        skipped: whether the last step was skipped.
    """

    def __init__(
        self,
        task: DistillationTask,
        optim: OptimConfig,
        seed: int = 0,
        *,
        skip_nonfinite: bool = False,
        sync_statistics: bool = True,
        per_step: int = 1,
        multi_scale: MultiScale | None = None,
        balance_schedule: BalanceSchedule = "constant",
    ) -> None:
        super().__init__()
        self.task = task
        self.optim = optim
        self.seed = seed
        self.skip_nonfinite = skip_nonfinite
        self.sync_statistics = sync_statistics
        self.per_step = per_step
        self.multi_scale = multi_scale
        self.balance_schedule = balance_schedule
        self.gradient_norm: Tensor | None = None
        self.ends_step = True
        self.skipped = False
        self._steps = 1
        self._values: list[dict[str, Tensor]] = []
        self._before_step: StepState | None = None

    def configure_optimizers(self) -> Any:
        """Build optimizer and learning-rate schedule for `task.trainable`."""
        backbone, criteria = self.task.student.backbone_layers() or (), self.task.trainable["criteria"].children()
        optimizer = build_optimizer(self.task.trainable, self.optim, backbone, late=criteria)
        check_optimizer(optimizer, self.task)
        epochs = [stage.epochs for stage in self.task.stages]
        # not trainer.estimated_stepping_batches, which would set up the loader before its state is restored
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        steps_per_epoch = count_steps(batches, self.per_step)
        self._steps = sum(epochs) * steps_per_epoch

        def factor(step: int) -> float:
            return learning_rate_factor(
                step, epochs, steps_per_epoch, warmup=self.optim.warmup, schedule=self.optim.schedule
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Enter the current stage; an epoch that a resumed run continues does not start again."""
        self._enter_stage(begins=False)

    def on_train_epoch_start(self) -> None:
        """Enter the stage of the epoch."""
        begins = starts_stage(self.task.stages, self.current_epoch)
        self._enter_stage(begins=begins)
        if begins and self.task.stage and self.optim.schedule == "restart":
            forget_steps(self.trainer.optimizers[0])

    def _enter_stage(self, *, begins: bool) -> None:
        index = stage_of_epoch(self.task.stages, self.current_epoch)
        self.task.enter_stage(index, begins=begins)
        for teacher in self.task.levels_in_use(index):
            teacher.to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random generators for the batch, and begin a step if it is the first one of it."""
        seed_everything(self.seed, self.current_epoch, batch_idx, self.global_rank)
        self.ends_step = ends_step(batch_idx, int(self.trainer.num_training_batches), self.per_step)
        if batch_idx % self.per_step == 0:
            self._values = []
            if self.skip_nonfinite:
                self._before_step = step_state(self.task)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the loss of one batch, and the named terms as their mean over the batches of the step so far."""
        if self.multi_scale is not None:
            batch = self.multi_scale(batch, self.current_epoch, batch_idx)
        batch = batch.channels_last()
        self.task.share_balance(balance_share(self.global_step / self._steps, self.balance_schedule))
        with shared_step(statistics=self.sync_statistics):
            named = self.task(batch.images, batch.targets, batch.keys, batch.larger)
        loss = torch.stack(list(named.values())).sum()
        terms = {name: value.detach() for name, value in {**named, **self.task.diagnostics()}.items()}
        self._values.append({"loss": loss.detach(), **terms})
        named = mean_values(self._values)
        if self.per_step > 1:  # the trainer divides by it in every step, also in one with fewer batches
            loss = loss * (
                self.per_step / step_batches(batch_idx, int(self.trainer.num_training_batches), self.per_step)
            )
        if self.ends_step and (self.global_step + 1) % LOG_EVERY == 0:
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict({"lr": lr, **named})  # prog_bar would wait for the device
        return {"loss": loss, "named": named}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of the whole gradient, or drop the gradient of a step to skip."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)
        self.gradient_norm = None if getattr(self.trainer.precision_plugin, "scaler", None) else norm
        if self.skip_nonfinite:
            checked = [
                value for value in (*mean_values(self._values).values(), self.gradient_norm) if value is not None
            ]
            bad = not torch.stack([value.float() for value in checked]).isfinite().all()
            self.skipped = self.trainer.strategy.reduce_boolean_decision(bad, all=False)
            if self.skipped:
                self._undo_step(parameters)

    def _undo_step(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None  # optimizers ignore it, weight decay and moments included
        assert self._before_step is not None
        restore_step(self.task, self._before_step)


def correlations_as_mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide each teacher's correlations by the number of levels, so that their sum over levels is the mean."""
    groups = {name: name.partition("/")[0] for name in values}
    levels = Counter(groups.values())
    return {
        name: value / levels[groups[name]] if groups[name].endswith("pearson") else value
        for name, value in values.items()
    }
