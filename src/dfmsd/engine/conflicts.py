"""Settings of a distillation that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.near import obstacle
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig, QueryMethod, check_loss, head_methods, replace_loss


def check_stage(index: int, stage: StageConfig, student: DetectorConfig, loss: LossConfig) -> None:
    """Check a stage against the student and the loss of the run.

    Args:
        index: stage, from 0.
        stage: the stage.
        student: of the run.
        loss: of the run.

    Raises:
        DfmsdError: the stage's loss has an impossible option, or needs labels that the stage does not have, or the
            stage cannot have a near teacher.
    """
    try:
        own = replace_loss(loss, stage.loss)
        check_loss(own)
    except DfmsdError as error:
        raise DfmsdError(str(error) if stage.loss == {} else f"stages.{index}: {error}") from error
    found = obstacle(stage, student, own) if isinstance(stage.near, NearConfig) else None
    if found is not None:
        raise DfmsdError(f"stages.{index}.near: {found.reason}; {found.remedy}")
    compared = head_methods(own)
    if compared and not stage.labels:
        raise DfmsdError(
            f"stages.{index}.labels: {compared[0]} compares predictions, which a stage without labels does not "
            f"make; give the stage a loss on features, such as stages.{index}.loss: dfmsd"
        )


def check_teacher_cache(stages: Sequence[StageConfig], loss: LossConfig, data: DataConfig) -> None:
    """Refuse to cache features that are not used, or that belong to images which do not recur.

    Args:
        stages: of the run.
        loss: of the run.
        data: of the run.

    Raises:
        DfmsdError: a loss runs the whole teacher, or an augmentation draws from too many images.
    """
    compared = _prediction_losses(stages, loss, QueryMethod)
    if compared:
        raise DfmsdError(
            f"teacher_cache: {compared[0]} runs the whole teacher in every step, so stored features would save "
            "nothing; leave out one of the two"
        )
    if data.uncacheable is not None:
        raise DfmsdError(f"teacher_cache: {data.uncacheable}, or leave teacher_cache out")


def check_unlabeled(stages: Sequence[StageConfig], loss: LossConfig, data: DataConfig) -> None:
    """Refuse images without annotations that nothing could be learned from.

    Args:
        stages: of the run.
        loss: of the run.
        data: of the run, with unlabeled images.

    Raises:
        DfmsdError: no stage has a teacher and no detector labels them, or a loss needs annotations.
    """
    taught = [stage for stage in stages if stage.teachers]
    if not taught and not data.labels_images:
        raise DfmsdError(
            "data.unlabeled: images without annotations need a teacher; leave it out, give a stage a teacher, or "
            "name one in data.pseudo.teacher"
        )
    compared = _prediction_losses(taught, loss)
    if compared:
        raise DfmsdError(
            f"data.unlabeled: {compared[0]} compares predictions, which requires annotations; choose a loss on "
            "features such as dfmsd, or leave data.unlabeled out"
        )


def with_labeler(data: DataConfig, stages: Sequence[StageConfig]) -> DataConfig:
    """Return the data with the name of the detector that labels images: by default the first teacher.

    Args:
        data: of the run.
        stages: of the run.

    Raises:
        DfmsdError: none is named, and the first stage has no teacher.
    """
    if not data.labels_images or data.pseudo.teacher is not None:
        return data
    first = stages[0].teachers
    if not first:
        raise DfmsdError("data.pseudo.teacher: the first stage has no teacher; name the detector that labels")
    return replace(data, pseudo=replace(data.pseudo, teacher=first[0]))


def _prediction_losses(stages: Sequence[StageConfig], loss: LossConfig, *kind: type[Any]) -> list[str]:
    """Return the losses of the stages that compare predictions, or those of one kind."""
    return [name for stage in stages for name in head_methods(replace_loss(loss, stage.loss), *kind)]
