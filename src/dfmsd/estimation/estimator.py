"""Estimate of a distillation's cost before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.build import read_data, teacher_names
from dfmsd.engine.config import DistillConfig, Recipe
from dfmsd.engine.environment import describe_environment
from dfmsd.engine.near import expand
from dfmsd.engine.nearchoice import describe, settle
from dfmsd.engine.run import build_task
from dfmsd.engine.teachercache import plan_caches
from dfmsd.engine.teachers import unfinished_recipes, untrained_teacher
from dfmsd.estimation.assumptions import assumptions
from dfmsd.estimation.flops import StageCost, count_stage
from dfmsd.estimation.prediction import Prediction, predict
from dfmsd.estimation.schedules import COCO_EPOCHS, ImageFlops, coco_flops, gpu_hours, stage_flops
from dfmsd.estimation.timing import SECONDS, autocast_context, cache_layout, labeling, step_parts, time_in_turns
from dfmsd.evaluation.pseudolabels import calibration_images
from dfmsd.types import Batch
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.device import default_device, synchronize
from dfmsd.utils.shapes import frame_of


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run.

    Attributes:
        config: of the run, without pretrained weights, and with ordinary stages in place of near teachers.
        costs: counted cost of a step of each stage.
        cache_bytes: bytes per image of each stage's teacher cache, stored as ``teacher_cache_dtype``.
        parts_ms: part -> milliseconds on this machine, see `dfmsd.estimation.timing.step_parts`.
        prediction: of the run on this machine.
        image_flops: FLOPs of each stage for one training image.
        coco_hours: GPU -> schedule -> hours.
        frame: height and width of the measured batch.
        teachers: reference -> estimate of the run of each teacher that is made first.
        plan: what near teachers the run makes, and why not, one line each.
        sizes: keywords of `predict` besides config and times, to predict the run with other epochs.
    """

    config: DistillConfig
    costs: tuple[StageCost, ...]
    cache_bytes: tuple[int, ...]
    parts_ms: dict[str, float]
    prediction: Prediction
    image_flops: tuple[dict[str, ImageFlops], ...]
    coco_hours: dict[str, dict[str, float]]
    frame: tuple[int, int]
    teachers: dict[str, Estimate]
    plan: tuple[str, ...] = ()
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def hours(self) -> float:
        """Predicted hours of the run and of the teachers that are made first."""
        return self.prediction.hours + sum(teacher.hours for teacher in self.teachers.values())

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON types, including the machine."""
        return {**asdict(self), "assumptions": assumptions(self.config), "environment": describe_environment()}


def estimate(
    config: DistillConfig, *, seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter
) -> Estimate:
    """Count and time the parts of a distillation.

    Nothing is trained, downloaded or written to the run folder.

    Args:
        config: of the run.
        seconds: timing budget; at least two rounds are run.
        clock: returns seconds: wall-clock time, or CPU time on a busy machine.

    Raises:
        DfmsdError: data, student or teachers are invalid, as in `dfmsd distill`.
    """
    target = default_device()
    settled = settle(config, weights=False)
    config, near = expand(settled.config)
    config = replace(config, student=replace(config.student, pretrained=False, init=None))
    data = read_data(config)
    labeling_images = 0
    if config.labeler is not None:
        labeling_images = len(data.unlabeled) + len(calibration_images(data)) * (config.data.pseudo.score == AUTO)
        data.assume_pseudo_labels()
    task = untrained_task(config, data.class_names, near)
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
        if config.labeler is not None:
            labeler = untrained_teacher(config.labeler, data.class_names, near)
            parts["label"] = labeling(labeler.to(target), data)
        ms = time_in_turns(parts, seconds, clock=clock, wait=wait)
    plan = plan_caches(task, config, len(data.train))
    sizes: dict[str, Any] = {
        "train_images": data.num_labeled,
        "val_images": len(data.val),
        "workers": data.workers,
        "labeling_images": labeling_images,
        "kept": 1.0 if plan is None or not plan.need else min(1.0, plan.room / plan.need),
    }
    prediction = predict(config, ms, **sizes)
    flops = {name: coco_flops(config, image_flops, epochs) for name, epochs in COCO_EPOCHS.items()}
    made = dict.fromkeys([*teacher_names(config), *([config.labeler] if config.labeler else [])])
    return Estimate(
        config,
        tuple(costs),
        tuple(cache_bytes),
        ms,
        prediction,
        tuple(image_flops),
        gpu_hours(flops, config.chosen_precision),
        frame_of(batch.images),
        {
            name: estimate(recipe.as_distillation(), seconds=seconds, clock=clock)
            for name, recipe in unfinished_recipes(list(made), near).items()
        },
        (*settled.notes, *describe(settled.config, near, data.class_names, data.num_labeled)),
        sizes,
    )


def untrained_task(
    config: DistillConfig, class_names: Sequence[str], recipes: Mapping[str, Recipe] | None = None
) -> DistillationTask:
    """Build a run's task with random weights in place of trained or downloaded ones, which cost the same.

    Args:
        config: of the run.
        class_names: of the data.
        recipes: see `build_task`.

    Raises:
        DfmsdError: student, teachers and data do not fit each other.
    """
    teachers = {name: untrained_teacher(name, class_names, recipes) for name in teacher_names(config)}
    return build_task(config, class_names, teachers=teachers)


def first_batch(data: CocoDataModule) -> Batch:
    """Load a batch of training images in this process, in the memory layout of training."""
    samples = [data.train[index] for index in data.example_indices]
    batch: Batch = data.train_dataloader().collate_fn(samples)
    return batch.channels_last()
