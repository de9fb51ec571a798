"""Assumptions of an estimate."""

from __future__ import annotations

from dfmsd.engine.config import DistillConfig
from dfmsd.estimation.schedules import COCO_IMAGES, COCO_SIZE, SIDES, UTILIZATION


def assumptions(config: DistillConfig) -> list[str]:
    """List the assumptions of an estimate, one line each.

    Args:
        config: of the run.
    """
    height, width = COCO_SIZE
    lines = [
        "FLOPs are those of convolutions and matrix products, 2 per multiply-add. All other operations are counted in "
        "elements and left out of the GPU hours. Saved bytes are what the backward pass needs.",
        "Weights that would have to be trained or downloaded are random; the cost does not depend on them. An "
        "untrained student detects less than a trained one, so evaluation may take longer.",
        "The step is the sum of its parts, timed separately in one process. Logging, checkpoints, the pre-flight, "
        "COCO scoring, and the evaluation of a test split, are left out.",
        f"COCO: {COCO_IMAGES:,} images of {height} x {width} per epoch, stage lengths in the ratio of the config and "
        "its number of classes, no teacher cache, no evaluation.",
        f"FLOPs of a {height} x {width} image are extrapolated linearly in the number of pixels from "
        f"{SIDES[0]} and {SIDES[1]} pixels.",
        f"GPUs reach {UTILIZATION:.0%} of the dense peak in their data sheets. This share is assumed, not measured; "
        "small models reach less. float32 means TF32 where the GPU has it, bf16 means fp16 on T4 and V100.",
    ]
    if config.world_size > 1:
        lines.append(f"{config.world_size} processes, each as fast as the one timed, with free communication.")
    if config.data.multi_scale is not None:
        lines.append("The time of a step is proportional to the pixels of its batch, see `data.multi_scale`.")
    if config.labeler is not None:
        lines.append("Every image of `data.unlabeled` counts as one with pseudo-labels.")
    if config.balance is not None:
        lines.append("Batches that `balance` measures, the first 20 of a stage and every tenth after, take longer.")
    if config.compile:
        lines.append("Everything is timed uncompiled, without the gain of `compile` and the minutes that it takes.")
    if config.teacher_cache == "disk":
        lines.append("The teacher cache starts empty; cached entries are timed from the page cache.")
    if config.teacher_cache and any(len(stage.teachers) > 1 for stage in config.stages):
        lines.append("Teachers of one stage are assumed equally slow where the cache contains only one of them.")
    return lines
