"""Optimizer settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfmsd.distillation.stages import Schedule
from dfmsd.utils.coerce import check_positive, check_range, coerce_fields


@dataclass
class OptimConfig:
    """How weights are updated.

    Args:
        name: AdamW, or SGD with momentum 0.9.
        lr: peak learning rate.
        backbone_lr: learning rate of the student's backbone, the layers in front of neck and head, as a factor of
            ``lr``; above 0.
        weight_decay: applied to everything but biases and norms.
        effective_batch: labeled images per optimizer step, a multiple of `data.batch_size` times the number of
            processes, whose gradients are averaged; null takes one batch of each process. The last step of an epoch may
            have fewer.
        warmup: optimizer steps of linear warm-up.
        clip: maximum gradient norm; 0 turns clipping off.
        schedule: one cosine over all stages (``continuous``), or a new warm-up, cosine and optimizer state in each
            stage (``restart``).
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    backbone_lr: float = 1.0
    weight_decay: float = 0.05
    effective_batch: int | None = None
    warmup: int = 100
    clip: float = 10.0
    schedule: Schedule = "continuous"

    def __post_init__(self) -> None:
        """Convert the values to their types, and check their ranges.

        Raises:
            DfmsdError: a value has the wrong type or is out of range.
        """
        coerce_fields(self, "optim.")
        check_positive(self, ("lr", "backbone_lr"), "optim.")
        check_range(self, ("effective_batch",), "optim.", minimum=1)
        check_range(self, ("weight_decay", "warmup", "clip"), "optim.", minimum=0)
