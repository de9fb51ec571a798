"""Optimizer settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from dfmsd.detectors.config import DetectorConfig, Start
from dfmsd.distillation.stages import Schedule
from dfmsd.utils.coerce import AUTO, check_positive, check_range, coerce_fields

Optimizer = Literal["lamb", "adamw", "sgd"]
RATES: Final[dict[Optimizer, dict[Start, float]]] = {
    "lamb": {"random": 2e-2, "backbone": 1e-2, "trained": 1e-2},
    "adamw": {"random": 3e-3, "backbone": 3e-3, "trained": 1e-3},
}
"""Learning rates for `IMAGES` images per optimizer step, by what is trained before; docs/lab-notebook.md compares
them."""
IMAGES = 8
SGD_LR, SGD_IMAGES = 0.01, 16
"""The same of torchvision's recipes for RetinaNet and FCOS on COCO."""


@dataclass
class OptimConfig:
    """How weights are updated.

    Args:
        name: LAMB, which scales each layer's step to the size of its weights, and moves biases and norms as Adam does;
            AdamW; or SGD with momentum 0.9. ``auto`` is LAMB, but AdamW for detectors that are trained already and
            where ``lr`` is a number, since numbers are usually those of AdamW.
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

    name: Literal["auto", Optimizer] = AUTO
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

    def resolved(self, images: int, detector: DetectorConfig) -> OptimConfig:
        """Return the settings with an optimizer and with a number as learning rate.

        Args:
            images: per optimizer step, if `effective_batch` does not say so.
            detector: that is trained.
        """
        name, lr = self.name, self.lr
        if name == AUTO:
            name = "lamb" if lr == AUTO and detector.start != "trained" else "adamw"
        if lr == AUTO:
            lr = learning_rate(name, self.effective_batch or images, detector.start)
        return replace(self, name=name, lr=lr)


def learning_rate(name: Optimizer, images: int, start: Start) -> float:
    """Return a peak learning rate for a number of images per optimizer step.

    With LAMB and AdamW it grows with the square root of the images, with SGD in proportion to them.

    Args:
        name: of the optimizer.
        images: at least 1.
        start: what of the detector is trained before.

    Source: You et al., "Large Batch Optimization for Deep Learning" (2020) and Malladi et al., "On the SDEs and Scaling
    Rules for Adaptive Gradient Algorithms" (2022) for the square root; Goyal et al., "Accurate, Large Minibatch SGD"
    (2017) for the proportion.
    """
    if name == "sgd":
        return SGD_LR * images / SGD_IMAGES
    return RATES[name][start] * math.sqrt(images / IMAGES)
