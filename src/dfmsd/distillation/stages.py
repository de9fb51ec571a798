"""Stages of a distillation: which teacher when, and the learning rate over the stages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig
from dfmsd.losses.basis import BasisName
from dfmsd.utils.coerce import AUTO, build, check_range, coerce_fields
from dfmsd.utils.files import check_path

Schedule = Literal["restart", "continuous"]


@dataclass(frozen=True)
class NearConfig:
    """A near teacher: one between the student and the teacher of a stage, made before the run.

    The literature calls it a teacher assistant (TAKD, arXiv 1902.03393). It has the student's architecture, pyramid and
    head on a bigger backbone. It teaches first, then the stage's own teacher, rotated into its channels
    (``basis: former``).

    Args:
        backbone: its backbone, as in `DetectorConfig`; null chooses one, so that its number of parameters is about the
            geometric mean of the student's and the teacher's.
        pretrained: ImageNet weights of the backbone: true, false, or the path of a state-dict file.
        epochs: length of its own training, >= 1; null takes half of the stage's epochs, rounded up.
        bridge: distill it from the stage's teacher; false trains it on the labels alone.
        share: share of the stage's epochs in which it teaches, above 0 and below 1.
        out: its run folder, which is used again if it holds this teacher; null names one next to the student's run
            folder by a hash of the near teacher's config, so that another config trains another one.
    """

    backbone: str | None = None
    pretrained: bool | str = True
    epochs: int | None = None
    bridge: bool = False
    share: float = 1 / 3
    out: str | None = None

    def __post_init__(self) -> None:
        """Convert the values to their types, and check them.

        Raises:
            DfmsdError: a value has the wrong type or is out of range.
        """
        prefix = "stages: near."
        coerce_fields(self, prefix)
        check_range(self, ("epochs",), prefix, minimum=1)
        if not 0 < self.share < 1:
            raise DfmsdError(f"{prefix}share must be above 0 and below 1, got {self.share}")
        for name in ("backbone", "pretrained", "out"):
            if getattr(self, name) == "":
                raise DfmsdError(f"{prefix}{name} is empty; give a value, or leave it out")
        if self.out is not None:
            check_path(f"{prefix}out", self.out)


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run.

    Args:
        teacher: run folder, student file, torchvision weight name, ``hf:`` or ``timm:`` reference, or the YAML file of
            a training or distillation, which is run on first use; a list of such for several teachers at once, whose
            losses are added up; None trains on the labels alone.
        epochs: length of the stage, >= 1.
        loss: options that override those of the run's loss in this stage; if one of the two is a list of losses, the
            stage's own loss alone.
        labels: train on the annotations too; false trains backbone and neck on the teachers' terms alone, and all
            images of a batch count as unlabeled. The last stage of a run has labels.
        fresh: start with new alignment and generation layers; false reuses those of the previous stage, teacher by
            teacher in their order. A stage that only adds the labels, see `adds_labels`, reuses them in any case.
        basis: channels that the teachers' features are rotated into before the student imitates them: the teacher's
            ``own`` (no rotation), those of the ``former`` stage's teacher, or those of the ``student`` as it enters the
            stage; see `dfmsd.losses.basis`. The rotation is fitted once and then frozen. ``auto`` chooses, see
            `choose_basis` in `dfmsd.distillation.basis`.
        near: make a teacher that is nearer to the student, and let it teach first; true, or a mapping with keys of
            `NearConfig`. ``auto`` does so for the first teacher of a run if it is of another architecture than the
            student and a near one can be made; otherwise the teacher teaches directly, and a line says why.
    """

    epochs: int
    teacher: str | list[str] | None = None
    loss: LossConfig = field(default_factory=dict)
    labels: bool = True
    fresh: bool = True
    basis: BasisName = "auto"
    near: bool | str | dict[str, Any] | NearConfig = False

    def __post_init__(self) -> None:
        """Convert the values to their types; `check_stages` checks them.

        Raises:
            DfmsdError: a value has another type.
        """
        coerce_fields(self, "stages: ")
        if isinstance(self.loss, str):
            object.__setattr__(self, "loss", {"name": self.loss})
        object.__setattr__(self, "near", _near_config(self.near))

    @property
    def teachers(self) -> tuple[str, ...]:
        """References of all teachers, in their order."""
        named = self.teacher or ()
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Epochs of the stage; with a near teacher, the epochs in which it teaches and those after it."""
        if not isinstance(self.near, NearConfig):
            return (self.epochs,)
        first = round(self.near.share * self.epochs)
        return first, self.epochs - first


def _near_config(value: Any) -> Any:
    """Build the config of a near teacher from true or a mapping; leave false and ``auto`` as they are."""
    if isinstance(value, str) and value != AUTO:
        raise DfmsdError(f"stages: near must be true, false, auto or a mapping with keys of NearConfig, got {value!r}")
    if value is True or isinstance(value, Mapping):
        return build(NearConfig, {} if value is True else value, "stages: near")
    return value


def taught_by(epochs: int, teachers: Sequence[str]) -> StageConfig:
    """Build a stage from all its teachers; a single one is stored as a string, as in hand-written configs.

    Args:
        epochs: length of the stage, >= 1.
        teachers: their references, at least one.
    """
    return StageConfig(epochs, teachers[0] if len(teachers) == 1 else list(teachers))


def check_stages(stages: Sequence[StageConfig]) -> None:
    """Check each stage, and that the stages can follow each other.

    Raises:
        DfmsdError: there is no stage, or one has no epoch, a teacher without a name or given twice, or needs of the
            stage before what that one does not have.
    """
    if not stages:
        raise DfmsdError(
            "stages: the list is empty; give at least one stage, such as {teacher: runs/teacher, epochs: 10}"
        )
    for index, stage in enumerate(stages):
        _check_alone(index, stage)
        if not stage.fresh and not (index and stages[index - 1].teachers and stage.teachers):
            raise DfmsdError(
                f"stages.{index}.fresh: false reuses the layers of the stage before, so both need a teacher"
            )
        if stage.basis in ("former", "student") and not stage.teachers:
            raise DfmsdError(f"stages.{index}.basis: {stage.basis} rotates a teacher, but the stage has none")
        if stage.basis == "former" and (index == 0 or len(stages[index - 1].teachers) != 1):
            raise DfmsdError(
                f"stages.{index}.basis: former needs a stage before it with exactly one teacher; choose student or own"
            )
        if stage.basis == "student" and not (index or stage.labels):
            raise DfmsdError(
                "stages.0.basis: without labels the student has nothing of its own yet that the teacher could be "
                "rotated into; choose own"
            )
    if not stages[-1].labels:
        raise DfmsdError(
            f"stages.{len(stages) - 1}.labels: false leaves the student's head untrained, and no stage follows that "
            "trains it; add a stage with labels"
        )


def _check_alone(index: int, stage: StageConfig) -> None:
    if stage.epochs < 1:
        raise DfmsdError(f"stages.{index}.epochs must be at least 1, got {stage.epochs}; or remove the stage")
    if stage.teacher == "" or not all(stage.teachers):
        raise DfmsdError(f"stages.{index}.teacher has an empty name; name a teacher, or leave it out")
    twice = [name for name, count in Counter(stage.teachers).items() if count > 1]
    if twice:
        raise DfmsdError(f"stages.{index}.teacher: {twice[0]} is given twice in one stage; name each teacher once")
    if not (stage.labels or stage.teachers):
        raise DfmsdError(
            f"stages.{index}.labels: false leaves nothing to learn from, as the stage has no teacher; name one"
        )


def adds_labels(stages: Sequence[StageConfig], index: int) -> bool:
    """Return whether a stage has the teachers and the loss of the stage before, which has no labels.

    Args:
        stages: the plan.
        index: stage, from 0.
    """
    stage, former = stages[index], stages[index - 1] if index else None
    if former is None or former.labels or not stage.labels:
        return False
    return (former.teachers, former.loss) == (stage.teachers, stage.loss)


def stage_of_epoch(stages: Sequence[StageConfig], epoch: int) -> int:
    """Return the index of the stage that an epoch, counted from 0, belongs to; past the end it is the last stage."""
    ends = accumulate(stage.epochs for stage in stages)
    return next((index for index, end in enumerate(ends) if epoch < end), len(stages) - 1)


def steps_into_stage(stages: Sequence[StageConfig], epoch: int, step: int, steps_per_epoch: int) -> int:
    """Return how many steps of its stage come before a step of an epoch, both counted from 0."""
    first = sum(stage.epochs for stage in stages[: stage_of_epoch(stages, epoch)])
    return (epoch - first) * steps_per_epoch + step


def starts_stage(stages: Sequence[StageConfig], epoch: int) -> bool:
    """Return whether a stage starts with this epoch."""
    return epoch == 0 or stage_of_epoch(stages, epoch) != stage_of_epoch(stages, epoch - 1)


def epochs_without_labels(stages: Sequence[StageConfig]) -> list[int]:
    """Return the epochs, counted from 0, that belong to stages without labels."""
    epochs = range(sum(stage.epochs for stage in stages))
    return [epoch for epoch in epochs if not stages[stage_of_epoch(stages, epoch)].labels]


def learning_rate_factor(
    step: int, epochs: Sequence[int], steps_per_epoch: int, *, warmup: int, schedule: Schedule = "continuous"
) -> float:
    """Linear warm-up, then a cosine decay to 0: once over all stages, or again in each.

    Args:
        step: optimizer step, from 0.
        epochs: epochs of each stage.
        steps_per_epoch: optimizer steps per epoch.
        warmup: warm-up steps; at most half of the steps that a cosine spans.
        schedule: ``continuous`` for one cosine, ``restart`` for one per stage.

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
