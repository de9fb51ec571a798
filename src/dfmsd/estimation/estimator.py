"""What a distillation will cost, before it is run: FLOPs, bytes, time on this machine, GPU hours on COCO."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import Detector, build_detector, load_detector
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.build import read_data
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.environment import describe_environment
from dfmsd.engine.run import build_task
from dfmsd.engine.teachercache import plan_caches
from dfmsd.estimation.flops import StageCost, count_stage
from dfmsd.estimation.prediction import Prediction, predict
from dfmsd.estimation.schedules import (
    COCO_EPOCHS,
    COCO_IMAGES,
    COCO_SIZE,
    SIDES,
    UTILIZATION,
    ImageFlops,
    coco_flops,
    gpu_hours,
    stage_flops,
)
from dfmsd.estimation.timing import SECONDS, autocast_context, cache_layout, step_parts, time_in_turns
from dfmsd.types import Batch
from dfmsd.utils.device import default_device, synchronize


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        config: of the run, without pretrained weights.
        costs: of a step of each stage, counted.
        cache_bytes: of each stage's teachers, for one image, stored as ``teacher_cache_dtype``.
        parts_ms: part -> milliseconds on this machine, see `dfmsd.estimation.timing.step_parts`.
        prediction: of the run on this machine.
        image_flops: of each stage, for one training image.
        coco_hours: GPU -> schedule -> hours.
        frame: height and width of the batch that was measured.
    """

    config: DistillConfig
    costs: tuple[StageCost, ...]
    cache_bytes: tuple[int, ...]
    parts_ms: dict[str, float]
    prediction: Prediction
    image_flops: tuple[dict[str, ImageFlops], ...]
    coco_hours: dict[str, dict[str, float]]
    frame: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Give everything as JSON's types, with the machine that it was measured on."""
        return {**asdict(self), "assumptions": assumptions(self), "environment": describe_environment()}


def estimate(
    config: DistillConfig, *, seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter
) -> Estimate:
    """Count and time the parts of a distillation; nothing is trained, downloaded or written into the run's folder.

    Args:
        config: of the run.
        seconds: for the calibration, of which at least two rounds are run.
        clock: gives seconds: of the wall, or of the processor where other programs disturb.

    Raises:
        DfmsdError: what `dfmsd distill` would refuse in data, student or teachers.
    """
    target = default_device()
    config = replace(config, student=replace(config.student, pretrained=False))
    data = read_data(config)
    task = untrained_task(config, data.class_names)
    task.to(target, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for teacher in task.every_teacher:
        teacher.to(target)
    batch = first_batch(data).to(target)
    costs, cache_bytes, image_flops = [], [], []
    with autocast_context(config, target)():
        for index in range(len(task.stages)):
            task.enter_stage(index, begins=False)
            costs.append(count_stage(task, batch))
            image_flops.append(stage_flops(task, target))
            used = task.levels_in_use(index).values()
            cache_bytes.append(sum(cache_layout(config, levels, batch).nbytes for levels in used))
    wait = partial(synchronize, target)
    with step_parts(config, task, data, batch, target) as parts:
        ms = time_in_turns(parts, seconds, clock=clock, wait=wait)
    plan = plan_caches(task, config, len(data.train))
    prediction = predict(
        config,
        ms,
        train_images=data.num_labeled,
        val_images=len(data.val),
        workers=data.workers,
        kept=1.0 if plan is None or not plan.need else min(1.0, plan.room / plan.need),
    )
    flops = {name: coco_flops(config, image_flops, epochs) for name, epochs in COCO_EPOCHS.items()}
    return Estimate(
        config,
        tuple(costs),
        tuple(cache_bytes),
        ms,
        prediction,
        tuple(image_flops),
        gpu_hours(flops, config.precision),
        (batch.images.shape[-2], batch.images.shape[-1]),
    )


def assumptions(found: Estimate) -> list[str]:
    """Name what an estimate takes for granted, one line each."""
    config = found.config
    lines = [
        "FLOPs are those of convolutions and matrix products, 2 per multiply-add; all the rest is counted in elements "
        "that it goes through, and left out of the GPU hours. Kept is what waits for the backward pass.",
        "Weights are random where they would have to be trained or downloaded; cost does not depend on them. An "
        "untrained student detects less than a trained one, so evaluation may take longer.",
        "The step is the sum of its parts, timed one by one in one process; logging, checkpoints, the pre-flight and "
        "COCO's scoring are left out.",
        f"COCO: {COCO_IMAGES:,} images of {COCO_SIZE[0]} x {COCO_SIZE[1]} an epoch, the stages' shares of the epochs "
        "as in the config, its number of classes, no teacher cache, no evaluation.",
        f"FLOPs of a {COCO_SIZE[0]} x {COCO_SIZE[1]} image: a straight line in the pixels through the counts at "
        f"{SIDES[0]} and {SIDES[1]} pixels.",
        f"GPUs reach {UTILIZATION:.0%} of the dense peak of their data sheets: a share that is assumed, not measured; "
        "small models reach less. float32 means TF32 where the GPU has it, bf16 means fp16 on T4 and V100.",
    ]
    if config.world_size > 1:
        lines.append(
            f"{config.world_size} processes, each as fast as the one that was timed; their communication is free."
        )
    if config.balance is not None:
        lines.append("The measuring steps at the start of a balanced stage take longer than the others.")
    if config.teacher_cache == "disk":
        lines.append("The teacher cache starts empty; found entries are timed from the page cache.")
    if config.teacher_cache and any(len(stage.teachers) > 1 for stage in config.stages):
        lines.append("Teachers of one stage are taken for equally slow where the cache holds one and not the other.")
    return lines


def untrained_task(config: DistillConfig, class_names: Sequence[str]) -> DistillationTask:
    """Build a run's task with random weights where others would have to be trained or downloaded: cost is the same.

    Raises:
        DfmsdError: student, teachers and data do not fit each other.
    """
    names = dict.fromkeys(name for stage in config.stages for name in stage.teachers)
    teachers = {name: untrained_teacher(name, class_names) for name in names}
    return build_task(config, class_names, teachers=teachers)


def untrained_teacher(reference: str, class_names: Sequence[str]) -> Detector:
    """Build a teacher, with random weights where others would have to be trained or downloaded."""
    if reference.endswith((".yaml", ".yml")):
        model = read_config(TrainConfig, Path(reference)).model
        return build_detector(replace(model, pretrained=False), class_names)
    return load_detector(reference, trained=False)


def first_batch(data: CocoDataModule) -> Batch:
    """Load a batch of the training images in this process, in the layout that training uses."""
    samples = [data.train[index] for index in data.example_indices]
    batch: Batch = data.train_dataloader().collate_fn(samples)
    return batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
