"""Optimizer settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from dfmsd.distillation.stages import Schedule
from dfmsd.utils.coerce import check_positive, check_range, coerce_fields

AUTO: Final = "auto"
ADAMW_LR, ADAMW_RANDOM_LR, ADAMW_IMAGES = 1e-3, 3e-3, 8
"""Learning rates of pretrained detectors and of those that start from random weights, and their images per optimizer
step; docs/lab-notebook.md compares them."""
SGD_LR, SGD_IMAGES = 0.01, 16
"""The same of torchvision's recipes for RetinaNet and FCOS on COCO."""


@dataclass
class OptimConfig:
    """How weights are updated.

    Args:
        name: AdamW, or SGD with momentum 0.9.
        lr: peak learning rate; ``auto`` follows from the images per optimizer step and from the weights that the
            detector starts with, see `learning_rate`.
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
    lr: float | Literal["auto"] = AUTO
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
        check_positive(self, ("backbone_lr",) if self.lr == AUTO else ("lr", "backbone_lr"), "optim.")
        check_range(self, ("effective_batch",), "optim.", minimum=1)
        check_range(self, ("weight_decay", "warmup", "clip"), "optim.", minimum=0)

    def resolved(self, images: int, *, at_random: bool = False) -> OptimConfig:
        """Return the settings with a number as learning rate.

        Args:
            images: per optimizer step, if `effective_batch` does not say so.
            at_random: the detector starts from random weights.
        """
        if self.lr != AUTO:
            return self
        return replace(self, lr=learning_rate(self.name, self.effective_batch or images, at_random=at_random))


def learning_rate(name: Literal["adamw", "sgd"], images: int, *, at_random: bool = False) -> float:
    """Return a peak learning rate for a number of images per optimizer step.

    With AdamW it grows with the square root of the images, from 0.001 at 8 images, or from 0.003 if the detector starts
    from random weights; with SGD in proportion to them, from 0.01 at 16.

    Args:
        name: of the optimizer.
        images: at least 1.
        at_random: the detector starts from random weights.

    Source: Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (2022) for the square root;
    Goyal et al., "Accurate, Large Minibatch SGD" (2017) for the proportion.
    """
    if name == "adamw":
        return (ADAMW_RANDOM_LR if at_random else ADAMW_LR) * math.sqrt(images / ADAMW_IMAGES)
    return SGD_LR * images / SGD_IMAGES
