"""Optimizer steps of several batches; the last step of an epoch may have fewer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def count_steps(batches: int, per_step: int) -> int:
    """Return the number of optimizer steps in so many batches."""
    return math.ceil(batches / per_step)


def step_batches(batch: int, batches: int, per_step: int) -> int:
    """Return the number of batches in the step of a batch.

    Args:
        batch: of the epoch, from 0.
        batches: in the epoch.
        per_step: at most.
    """
    first = batch - batch % per_step
    return min(per_step, batches - first)


def ends_step(batch: int, batches: int, per_step: int) -> bool:
    """Return whether a batch of an epoch, from 0, is the last one of its step."""
    return (batch + 1) % per_step == 0 or batch + 1 == batches


def mean_values(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each named scalar over the batches of a step."""
    if len(values) == 1:
        return dict(values[0])
    return {name: torch.stack([one[name].float() for one in values]).mean() for name in values[0]}
