"""Stage-wise adaptation: which teacher when, and the learning rate over the stages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig

Schedule = Literal["restart", "continuous"]


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run.

    Args:
        teacher: run folder, student file, torchvision weight name, ``hf:`` or ``timm:`` reference, or the YAML of a
            training run, which is made on first use; a list of such for several at once, whose losses are added up;
            None is plain training on the labels.
        epochs: length of the stage, >= 1.
        loss: options that replace those of the run's loss in this stage; where one of the two is a list of losses, the
            stage's own alone.
        fresh: new alignment and generation layers; false takes over those of the stage before, of its first teacher
            for the first one and so on.
    """

    epochs: int
    teacher: str | list[str] | None = None
    loss: LossConfig = field(default_factory=dict)
    fresh: bool = True

    @property
    def teachers(self) -> tuple[str, ...]:
        """References of all teachers, in their order."""
        named = self.teacher or ()
        return (named,) if isinstance(named, str) else tuple(named)


def taught_by(epochs: int, teachers: Sequence[str]) -> StageConfig:
    """Describe a stage by all its teachers; the only one as in a config written by hand, and in those of earlier runs.

    Args:
        epochs: length of the stage, >= 1.
        teachers: their references, at least one.
    """
    return StageConfig(epochs, teachers[0] if len(teachers) == 1 else list(teachers))


def check_stages(stages: Sequence[StageConfig]) -> None:
    """Refuse an impossible plan.

    Raises:
        DfmsdError: no stage, a stage without epochs or with a teacher twice, or a first stage that takes layers over.
    """
    if not stages:
        raise DfmsdError(
            "stages: the list is empty; give at least one stage, such as {teacher: runs/teacher, epochs: 10}"
        )
    for index, stage in enumerate(stages):
        if stage.epochs < 1:
            raise DfmsdError(f"stages.{index}.epochs: {stage.epochs} is below 1; give the stage an epoch or remove it")
        if not all(stage.teachers):
            raise DfmsdError(f"stages.{index}.teacher: a name is empty; name a teacher, or leave it out")
        twice = [name for name, count in Counter(stage.teachers).items() if count > 1]
        if twice:
            raise DfmsdError(f"stages.{index}.teacher: {twice[0]} is there twice; name each teacher once")
        if not stage.fresh and not (index and stages[index - 1].teachers and stage.teachers):
            raise DfmsdError(f"stages.{index}.fresh: false needs a stage with a teacher before it, to take layers from")


def stage_of_epoch(stages: Sequence[StageConfig], epoch: int) -> int:
    """Index of the stage that epoch ``epoch`` (from 0) belongs to; past the end it is the last stage."""
    ends = accumulate(stage.epochs for stage in stages)
    return next((index for index, end in enumerate(ends) if epoch < end), len(stages) - 1)


def starts_stage(stages: Sequence[StageConfig], epoch: int) -> bool:
    """Whether a stage begins with this epoch."""
    return epoch == 0 or stage_of_epoch(stages, epoch) != stage_of_epoch(stages, epoch - 1)


def learning_rate_factor(
    step: int, epochs: Sequence[int], steps_per_epoch: int, *, warmup: int, schedule: Schedule = "continuous"
) -> float:
    """Linear warm-up, then a cosine down to 0: once over all stages, or again in each.

    Args:
        step: optimiser step, from 0.
        epochs: epochs of each stage.
        steps_per_epoch: optimiser steps in an epoch.
        warmup: steps of the warm-up; at most half of what the cosine spans.
        schedule: ``continuous`` for one cosine, ``restart`` for one a stage.

    Returns:
        Factor of the base learning rate, 0..1.
    """
    spans = [n * steps_per_epoch for n in (epochs if schedule == "restart" else [sum(epochs)])]
    start = 0
    for span in spans[:-1]:
        if step < start + span:
            break
        start += span
    else:
        span = spans[-1]
    warmup = min(warmup, span // 2)
    local = step - start
    if local < warmup:
        return (local + 1) / warmup
    progress = min((local - warmup) / max(span - warmup, 1), 1.0)
    return (1 + math.cos(math.pi * progress)) / 2
