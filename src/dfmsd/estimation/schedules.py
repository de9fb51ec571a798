"""Projection to data-center and desktop GPUs with the usual COCO schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dfmsd.data.config import STRIDE
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig
from dfmsd.estimation.flops import StageCost, count_stage
from dfmsd.types import Batch, Target
from dfmsd.utils.durations import HOUR

COCO_IMAGES = 118_287
COCO_SIZE = (800, 1344)
COCO_EPOCHS = {"1x": 12, "2x": 24}
UTILIZATION = 0.3
SIDES = (256, 512)
"""Sides of the square images on which FLOPs are counted."""
IMAGES = 2
"""Batch size for counting: batch norm needs more than one image if a level has a single cell, as in SSDLite."""
BOXES = 7
"""Objects per image, about the mean of COCO."""


class Gpu(NamedTuple):
    """Dense peak performance in TFLOPS from the vendor's data sheet."""

    half: float
    """bfloat16 or float16 tensor cores with float32 accumulation."""
    single: float
    """TF32 if available, otherwise float32, as in PyTorch's float32 convolutions."""


GPUS = {
    "T4": Gpu(65, 8.1),
    "V100 SXM2": Gpu(125, 15.7),
    "RTX 3090": Gpu(71, 35.6),
    "RTX 4090": Gpu(165.2, 82.6),
    "A100 SXM": Gpu(312, 156),
    "H100 SXM": Gpu(989, 494),
}


@dataclass(frozen=True)
class ImageFlops:
    """FLOPs of one training image, forward and backward, ``constant + per_pixel * pixels``."""

    constant: float
    per_pixel: float

    def __call__(self, size: tuple[int, int]) -> float:
        """Return the FLOPs of an image with this height and width."""
        return self.constant + self.per_pixel * size[0] * size[1]


def stage_flops(task: DistillationTask, device: torch.device) -> dict[str, ImageFlops]:
    """Count the task's current stage at two sizes: ``student``, ``teacher`` and ``loss``.

    FLOPs are linear in the number of pixels: all parts are convolutions over the image, except for box heads, which
    process a fixed number of regions.

    Args:
        task: in training mode, on ``device``.
        device: where to count.
    """
    classes = len(task.student.class_names)
    scale = max((teacher.scale for teacher in task.every_teacher), default=1.0)
    batches = (random_batch(IMAGES, side, classes, scale).to(device) for side in SIDES)
    counted = [_products(count_stage(task, batch)) for batch in batches]
    pixels = [side * side for side in SIDES]
    flops = {}
    for part in counted[0]:
        per_pixel, constant = np.polyfit(pixels, [each[part] / IMAGES for each in counted], 1)
        flops[part] = ImageFlops(float(constant), float(per_pixel))
    return flops


def random_batch(images: int, side: int, classes: int, scale: float = 1.0) -> Batch:
    """Draw random square images with boxes of 1/8 to 1/2 of their side, and for the teachers others of ``scale``."""
    targets = [_random_target(side, classes) for _ in range(images)]
    batch = Batch(torch.rand(images, 3, side, side), targets, [], [], [])
    seen = round(side * scale / STRIDE) * STRIDE
    return batch if scale == 1 else batch._replace(larger=torch.rand(images, 3, seen, seen))


def coco_flops(
    config: DistillConfig, stages: list[dict[str, ImageFlops]], epochs: int, size: tuple[int, int] = COCO_SIZE
) -> float:
    """Return the FLOPs of training on COCO, with the stages' shares of the epochs as in the config and no cache.

    Args:
        config: of the run.
        stages: FLOPs of each stage, see `stage_flops`.
        epochs: of the schedule.
        size: height and width of an image.
    """
    step = [sum(flops(size) for flops in parts.values()) for parts in stages]
    weighted = sum(stage.epochs * flops for stage, flops in zip(config.stages, step, strict=True)) / config.epochs
    return COCO_IMAGES * epochs * weighted


def gpu_hours(flops: Mapping[str, float], precision: str) -> dict[str, dict[str, float]]:
    """Return the hours of each GPU at `UTILIZATION` of its peak.

    Args:
        flops: schedule -> FLOPs.
        precision: ``32``, ``bf16`` or ``16``.
    """
    peaks = {name: gpu.single if precision == "32" else gpu.half for name, gpu in GPUS.items()}
    return {
        name: {schedule: value / (1e12 * peak * UTILIZATION) / HOUR for schedule, value in flops.items()}
        for name, peak in peaks.items()
    }


def _products(cost: StageCost) -> dict[str, int]:
    parts = {"student": cost.student}
    if cost.teacher is not None:
        parts |= {"teacher": cost.teacher, "loss": cost.loss}
    return {name: part.forward + part.backward for name, part in parts.items()}


def _random_target(side: int, classes: int) -> Target:
    sides = torch.empty(BOXES, 2).uniform_(side / 8, side / 2)
    corners = torch.rand(BOXES, 2) * (side - sides)
    return Target(boxes=torch.cat([corners, corners + sides], dim=1), labels=torch.randint(classes, (BOXES,)))
