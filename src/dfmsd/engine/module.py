"""The Lightning shell around a distillation task: optimiser, schedule, stages. No method lives here."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from dfmsd.distillation.checks import check_optimizer
from dfmsd.distillation.stages import learning_rate_factor, stage_of_epoch, starts_stage
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import OptimConfig
from dfmsd.types import Batch
from dfmsd.utils.distributed import shared_step

LOG_EVERY = 10
"""Steps between two points of TensorBoard's curves."""


class DistillationModule(pl.LightningModule):
    """Train a task's `trainable` part.

    Args:
        task: what is trained.
        optim: how.
        seed: the global generators are seeded from it, the epoch, the batch and the rank before every step, so that a
            resumed run draws the same masks.
        skip_nonfinite: whether a step with a loss or gradient that is not finite is left out: neither weights nor
            statistics change. Each step then waits for the device.
        sync_statistics: whether losses take their statistics over the batches of all processes, see `shared_step` in
            `dfmsd.utils.distributed`.

    Attributes:
        gradient_norm: of the last step, before clipping; None where a loss scaler (fp16) meets overflows by itself.
        skipped: whether the last step was left out.
    """

    def __init__(
        self,
        task: DistillationTask,
        optim: OptimConfig,
        seed: int = 0,
        *,
        skip_nonfinite: bool = False,
        sync_statistics: bool = True,
    ) -> None:
        super().__init__()
        self.task = task
        self.optim = optim
        self.seed = seed
        self.skip_nonfinite = skip_nonfinite
        self.sync_statistics = sync_statistics
        self.gradient_norm: Tensor | None = None
        self.skipped = False
        self._named: dict[str, Tensor] = {}
        self._statistics: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        """Build optimiser and learning-rate schedule over `task.trainable`."""
        optimizer = build_optimizer(self.task.trainable, self.optim)
        check_optimizer(optimizer, self.task)
        epochs = [stage.epochs for stage in self.task.stages]
        # not trainer.estimated_stepping_batches, which sets up the loader before its state is restored
        steps_per_epoch = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]

        def factor(step: int) -> float:
            return learning_rate_factor(
                step, epochs, steps_per_epoch, warmup=self.optim.warmup, schedule=self.optim.schedule
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Enter the stage: an epoch that a resumed run finds begun does not start again."""
        self._enter_stage(begins=False)

    def on_train_epoch_start(self) -> None:
        """Enter the epoch's stage."""
        begins = starts_stage(self.task.stages, self.current_epoch)
        self._enter_stage(begins=begins)
        if begins and self.task.stage and self.optim.schedule == "restart":
            self.trainer.optimizers[0].state.clear()

    def _enter_stage(self, *, begins: bool) -> None:
        index = stage_of_epoch(self.task.stages, self.current_epoch)
        self.task.enter_stage(index, begins=begins)
        for teacher in self.task.levels_in_use(index):
            teacher.to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step."""
        seed_everything(self.seed, self.current_epoch, batch_idx, self.global_rank)
        if self.skip_nonfinite:
            self._statistics = [buffer.clone() for buffer in self.task.buffers()]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Compute the loss of one batch and its named parts."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with shared_step(statistics=self.sync_statistics):
            named = self.task(images, batch.targets, batch.keys)
        loss = torch.stack(list(named.values())).sum()
        parts = {name: value.detach() for name, value in {**named, **self.task.diagnostics()}.items()}
        self._named = named = {"loss": loss.detach(), **parts}
        if (self.global_step + 1) % LOG_EVERY == 0:
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict({"lr": lr, **named})  # not with prog_bar, for which Lightning waits for the device each time
        return {"loss": loss, "named": named}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of the whole gradient; drop the gradient where the step is to be left out."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)
        self.gradient_norm = None if getattr(self.trainer.precision_plugin, "scaler", None) else norm
        if self.skip_nonfinite:
            looked_at = [value for value in (*self._named.values(), self.gradient_norm) if value is not None]
            bad = not torch.stack([value.float() for value in looked_at]).isfinite().all()
            self.skipped = self.trainer.strategy.reduce_boolean_decision(bad, all=False)
            if self.skipped:
                self._leave_out(parameters)

    def _leave_out(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None  # optimisers pass over it, decay and moments included
        for buffer, before in zip(self.task.buffers(), self._statistics, strict=True):
            buffer.copy_(before)


def seed_everything(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch, on all devices, from non-negative numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a module's parameters; biases and norms do not decay."""
    groups = param_groups_weight_decay(module, optim.weight_decay)
    # not fused=True: on a CPU it takes weights and gradients of different memory layouts for alike (torch 2.14)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9)


def correlations_as_mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scale each teacher's correlations so that their sum over levels is their mean; other values are sums."""
    groups = {name: name.partition("/")[0] for name in values}
    levels = Counter(groups.values())
    return {
        name: value / levels[groups[name]] if groups[name].endswith("pearson") else value
        for name, value in values.items()
    }
