"""The same runs from Python, with detectors that are already there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfmsd.data import DataConfig
from dfmsd.detectors import Detector, DetectorConfig
from dfmsd.distillation.stages import taught_by
from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig

if TYPE_CHECKING:
    from dfmsd.engine.run import Result


Teacher = Detector | str | Path


def distill(
    student: Detector | DetectorConfig,
    teachers: Teacher | Sequence[Teacher | Sequence[Teacher]],
    data: str | Path | DataConfig,
    out: str | Path,
    *,
    epochs: int | Sequence[int] = 12,
    loss: LossConfig | None = None,
    allow_weak_teacher: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Result:
    """Distil one or several teachers, one after the other or at once, into a student.

    Args:
        student: a detector, trained in place, or what to build; the weights of a `ModuleDetector` are delivered for
            its own module.
        teachers: detectors or references (see `StageConfig`), in the order of the stages; several in one stage by a
            list of their own, as in ``[first, [second, third]]``.
        data: folder in the COCO layout, or a whole `DataConfig`.
        out: run folder.
        epochs: of each stage, or of all stages together, shared evenly.
        loss: ``name`` and options of the loss; several at once by a list of such.
        allow_weak_teacher: do not refuse a teacher that measures badly.
        resume: go on with the unfinished run in ``out``.
        overwrite: delete what is in ``out`` first.
        **options: other fields of `DistillConfig`, such as ``seed``, ``optim`` or ``balance``.

    Returns:
        ``result.metrics["AP"]``, ``result.run``, ``result.student``.

    Raises:
        DfmsdError: bad input; nothing has been trained then.
    """
    from dfmsd.engine import run as engine  # here, since pytorch-lightning takes half of the time that an import takes

    plan = [_together(stage) for stage in _together(teachers)]
    lengths = _share(epochs, len(plan)) if isinstance(epochs, int) else list(epochs)
    if len(lengths) != len(plan):
        raise DfmsdError(f"epochs: {len(lengths)} numbers for {len(plan)} stages; give one for each, or their sum")
    numbers, stages = count(1), []
    given: dict[str, Detector] = {}
    for length, together in zip(lengths, plan, strict=True):
        names = [_name(teacher, next(numbers)) for teacher in together]
        given |= {name: teacher for name, teacher in zip(names, together, strict=True) if isinstance(teacher, Detector)}
        stages.append(taught_by(length, names))
    config = DistillConfig(
        out=str(out),
        data=data if isinstance(data, DataConfig) else DataConfig(root=str(data)),
        student=_config_of(student),
        stages=stages,
        loss={} if loss is None else loss,
        **options,
    )
    return engine.distill(
        config,
        student=student if isinstance(student, Detector) else None,
        teachers=given,
        allow_weak_teacher=allow_weak_teacher,
        resume=resume,
        overwrite=overwrite,
    )


def _together(teachers: Any) -> list[Any]:
    return [teachers] if isinstance(teachers, str | Path | Detector) else list(teachers)


def _name(teacher: Teacher, number: int) -> str:
    # One that no reference can have: config.yaml tells that the stage had a teacher, and nobody loads another one.
    return f"python:teacher{number}" if isinstance(teacher, Detector) else str(teacher)


def _share(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _config_of(student: Detector | DetectorConfig) -> DetectorConfig:
    """Give what the student is made of, which the delivered file has to tell."""
    if isinstance(student, DetectorConfig):
        return student
    if student.config is not None:
        return student.config
    raise DfmsdError(
        f"student: this {type(student).__name__} was not built from a configuration, so that it could not be saved; "
        "give a DetectorConfig, a detector made by build_detector, or a module of your own as a ModuleDetector"
    )
