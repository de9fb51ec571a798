"""Undoing of a training step that is skipped."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from dfmsd.distillation.balance import GradientBalance


class StepState(NamedTuple):
    """What a forward pass in training mode changes."""

    buffers: list[Tensor]
    """Copies of all buffers, such as batch statistics and measured gradient norms."""
    calls: list[int]
    """Steps so far of each gradient balance, which counts them on the host."""


def step_state(module: nn.Module) -> StepState:
    """Copy what a step changes besides weights."""
    return StepState([buffer.clone() for buffer in module.buffers()], [balance.calls for balance in _balances(module)])


def restore_step(module: nn.Module, state: StepState) -> None:
    """Undo a step: put back what `step_state` copied before it."""
    for buffer, before in zip(module.buffers(), state.buffers, strict=True):
        buffer.copy_(before)
    for balance, count in zip(_balances(module), state.calls, strict=True):
        balance.calls = count


def _balances(module: nn.Module) -> list[GradientBalance]:
    return [part for part in module.modules() if isinstance(part, GradientBalance)]
