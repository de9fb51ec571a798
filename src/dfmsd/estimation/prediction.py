"""Prediction of a run's duration from the times of its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean

from dfmsd.data import DataConfig
from dfmsd.distillation.stages import stage_of_epoch
from dfmsd.engine.accumulation import count_steps
from dfmsd.engine.config import DistillConfig
from dfmsd.utils.durations import HOUR

CHOOSING = ("best", "auto")
"""Values of `deliver` that take one more evaluation at the end."""


@dataclass(frozen=True)
class StagePrediction:
    """Duration of one stage's steps.

    Attributes:
        epochs: of the stage.
        first_step_ms: in its first epoch.
        step_ms: in its last epoch.
    """

    epochs: int
    first_step_ms: float
    step_ms: float


@dataclass(frozen=True)
class Prediction:
    """Duration of a whole run.

    Attributes:
        stages: steps of each stage.
        steps_per_epoch: optimizer steps of each process.
        steps: of the whole run.
        evaluations: number of evaluations.
        evaluation_s: seconds per evaluation.
        labeling_s: seconds to find pseudo-labels before the first epoch.
        hours: labeling, training and evaluation.
    """

    stages: tuple[StagePrediction, ...]
    steps_per_epoch: int
    steps: int
    evaluations: int
    evaluation_s: float
    labeling_s: float
    hours: float


def predict(
    config: DistillConfig,
    ms: Mapping[str, float],
    *,
    train_images: int,
    val_images: int,
    workers: int = 0,
    kept: float = 1.0,
    labeling_images: int = 0,
) -> Prediction:
    """Predict a run from the times of its parts.

    Args:
        config: of the run.
        ms: part -> milliseconds, see `dfmsd.estimation.timing.step_parts`.
        train_images: number of training images.
        val_images: number of validation images.
        workers: loader processes, which run in parallel to the step; 0 loads between steps.
        kept: share of the teacher features that fit into the cache, 0..1.
        labeling_images: number of images that a teacher sees to find pseudo-labels, those for its thresholds included.
    """
    per_process = math.ceil(train_images / config.world_size)
    batches = max(per_process // config.data.batch_size, 1)
    steps = count_steps(batches, config.per_step)
    epochs = [_epoch_step(config, ms, epoch, workers, kept, batches / steps) for epoch in range(config.epochs)]
    stages, start = [], 0
    for stage in config.stages:
        steps_ms = epochs[start : start + stage.epochs]
        stages.append(StagePrediction(stage.epochs, steps_ms[0], steps_ms[-1]))
        start += stage.epochs
    with_labels = set(range(config.epochs)).difference(config.epochs_without_labels)
    due = [(epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs for epoch in with_labels]
    evaluations = sum(due) + (config.deliver in CHOOSING)
    evaluation = math.ceil(val_images / config.data.batch_size) * _with_loading(ms["detect"], ms["load"], workers)
    labeling = 0.0
    if labeling_images:
        batches = math.ceil(labeling_images / config.data.batch_size)
        labeling = batches * _with_loading(ms["label"], ms["decode"], workers)
    total = labeling + steps * sum(epochs) + evaluations * evaluation
    return Prediction(
        tuple(stages),
        steps,
        steps * config.epochs,
        evaluations,
        evaluation / 1e3,
        labeling / 1e3,
        total / (1000 * HOUR),
    )


def missing_share(data: DataConfig, seen: int) -> float:
    """Return the share of images that appear in an epoch as they did not appear before.

    Args:
        data: with the augmentations.
        seen: earlier epochs with the same augmentations whose features are kept.
    """
    if data.augment_pool and seen >= data.augment_pool:
        return 0.0
    if data.unrepeated:
        return 1.0
    flip: float = data.augmentation["flip"]
    return flip * (1 - flip) ** seen + (1 - flip) * flip**seen


def _epoch_step(
    config: DistillConfig, ms: Mapping[str, float], epoch: int, workers: int, kept: float, batches: float
) -> float:
    """Return the milliseconds of an optimizer step of so many batches."""
    index = stage_of_epoch(config.stages, epoch)
    batch = ms["student" if config.stages[index].labels else "pyramid"]
    if config.stages[index].teachers:
        batch += ms[f"{index + 1}/loss"] + _teacher(config, ms, index, epoch, kept)
    batch *= config.data.mean_area
    load = ms["load"] if epoch else ms["decode"]
    return _with_loading(batches * batch + ms[f"{index + 1}/update"], batches * load, workers)


def _teacher(config: DistillConfig, ms: Mapping[str, float], index: int, epoch: int, kept: float) -> float:
    if config.teacher_cache is None:
        return ms[f"{index + 1}/teacher"]
    teachers = config.stages[index].teachers
    shares = [missing_share(config.data, _epochs_before(config, name, epoch)) for name in teachers]
    missing = kept * fmean(shares) + 1 - kept
    return missing * ms[f"{index + 1}/stored"] + (1 - missing) * ms[f"{index + 1}/cached"]


def _epochs_before(config: DistillConfig, teacher: str, epoch: int) -> int:
    """Count the earlier epochs with the same augmentations whose features of a teacher are still in the cache."""
    mixed, _ = config.data.phases(config.epochs)
    first = mixed if epoch >= mixed else 0
    stages = [config.stages[stage_of_epoch(config.stages, earlier)] for earlier in reversed(range(first, epoch))]
    taught = [teacher in stage.teachers for stage in stages]
    # a RAM cache is freed in a stage without the teacher
    return sum(takewhile(bool, taught) if config.teacher_cache == "ram" else taught)


def _with_loading(compute: float, load: float, workers: int) -> float:
    return max(compute, load / workers) if workers else compute + load
