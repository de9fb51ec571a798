"""Exponential moving average of the student's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dfmsd.engine.module import DistillationModule
from dfmsd.engine.restoring import StatefulCallback

RAMP = 10
"""Steps after which the average forgets its start: the decay of step ``n`` is at most ``(1 + n) / (RAMP + n)``."""


class WeightAverage(StatefulCallback):
    """Average the student's weights and statistics over the steps.

    After step ``n``, ``average += (1 - d) (weights - average)`` with ``d = min(decay, (1 + n) / (10 + n))``, so that a
    short run averages over its own length. In stages without labels the average is the weights themselves, so that it
    begins with the training of the head. Integers, such as the counters of batch norms, are copied. The tensors are
    kept apart from the student instead of in a copy of it, since detectors of other libraries cannot always be copied.

    Args:
        decay: ``d`` of a long run, in 0..1.

    Source: the ramp is that of TensorFlow's ``ExponentialMovingAverage`` (``num_updates``).
    """

    saved = ("steps", "tensors")

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start with the student's weights, or with the restored average of a resumed run."""
        student = _student(pl_module)
        restored = self.tensors
        self.tensors = {name: restored.get(name, value).to(value, copy=True) for name, value in _state(student).items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after a step, unless it was skipped."""
        assert isinstance(pl_module, DistillationModule)
        if pl_module.skipped or not pl_module.ends_step:
            return
        self.steps = self.steps + 1 if pl_module.task.labels else 0
        weight = 1 - min(self.decay, (1 + self.steps) / (RAMP + self.steps)) if self.steps else 1.0
        state = _state(_student(pl_module))
        names = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in names], [state[name] for name in names], weight)
        for name in state.keys() - set(names):
            self.tensors[name].copy_(state[name])

    @contextmanager
    def applied(self, student: nn.Module) -> Iterator[None]:
        """Put the average into the student, and its own weights back on exit."""
        own = {name: value.clone() for name, value in _state(student).items()}
        _load(student, self.tensors)
        try:
            yield
        finally:
            _load(student, own)

    def apply(self, student: nn.Module) -> None:
        """Put the average into the student for good."""
        _load(student, self.tensors)


def _student(module: pl.LightningModule) -> nn.Module:
    assert isinstance(module, DistillationModule)
    return module.task.student


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module by name, which share their memory with it."""
    return {name: value.detach() for name, value in module.state_dict().items()}


@torch.no_grad()
def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, value in _state(module).items():
        value.copy_(tensors[name])
