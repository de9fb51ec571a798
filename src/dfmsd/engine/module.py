"""The Lightning shell around a distillation task: optimiser, schedule, stages. No method lives here."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from dfmsd.distill.checks import check_optimizer
from dfmsd.distill.stages import learning_rate_factor, stage_of_epoch, starts_stage
from dfmsd.distill.task import DistillationTask
from dfmsd.engine.config import OptimConfig
from dfmsd.types import Batch

LOG_EVERY = 10
"""Steps between two points of TensorBoard's curves."""


class DistillationModule(pl.LightningModule):
    """Train a task's `trainable` part.

    Args:
        task: what is trained.
        optim: how.
        seed: the global generator is seeded from it, the epoch and the rank at the start of every epoch, so that a
            resumed run draws the same masks.
    """

    def __init__(self, task: DistillationTask, optim: OptimConfig, seed: int = 0) -> None:
        super().__init__()
        self.task = task
        self.optim = optim
        self.seed = seed

    def configure_optimizers(self) -> Any:
        """Build optimiser and learning-rate schedule over `task.trainable`."""
        optimizer = build_optimizer(self.task.trainable, self.optim)
        check_optimizer(optimizer, self.task)
        epochs = [stage.epochs for stage in self.task.stages]
        steps_per_epoch = int(self.trainer.estimated_stepping_batches) // sum(epochs)

        def factor(step: int) -> float:
            return learning_rate_factor(
                step, epochs, steps_per_epoch, warmup=self.optim.warmup, schedule=self.optim.schedule
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Enter the epoch's stage and seed the generator."""
        stages, epoch = self.task.stages, self.current_epoch
        index, begins = stage_of_epoch(stages, epoch), starts_stage(stages, epoch)
        self.task.enter_stage(index, begins=begins)
        for teacher in self.task.levels_in_use(index):
            teacher.to(self.device)
        if begins and index and self.optim.schedule == "restart":
            self.trainer.optimizers[0].state.clear()
        torch.manual_seed((self.seed * 100_003 + epoch) * 1009 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Compute the loss of one batch and its named parts."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        named = self.task(images, batch.targets, batch.keys)
        loss = torch.stack(list(named.values())).sum()
        parts = {name: value.detach() for name, value in {**named, **self.task.diagnostics()}.items()}
        named = {"loss": loss.detach(), **parts}
        if (self.global_step + 1) % LOG_EVERY == 0:
            self.log_dict(named)  # not with prog_bar, for which Lightning waits for the device each time: see LossBar
        return {"loss": loss, "named": named}


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
