"""Optimizer settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dfmsd.distillation.stages import Schedule
from dfmsd.errors import DfmsdError


@dataclass
class OptimConfig:
    """How weights are updated.

    Args:
        name: AdamW, or SGD with momentum 0.9.
        lr: peak learning rate.
        weight_decay: applied to everything but biases and norms.
        warmup: optimizer steps of linear warm-up.
        clip: maximum gradient norm; 0 turns clipping off.
        schedule: one cosine over all stages (``continuous``), or a new warm-up, cosine and optimizer state in each
            stage (``restart``).
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    clip: float = 10.0
    schedule: Schedule = "continuous"

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            DfmsdError: a value is out of range.
        """
        if not 0 < self.lr < math.inf:
            raise DfmsdError(f"optim.lr: {self.lr} is out of range; give a number above 0")
        for name in ("weight_decay", "warmup", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DfmsdError(f"optim.{name}: {getattr(self, name)} is out of range; give 0 or more")
