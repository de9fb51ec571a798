"""The same runs from Python, with detectors that are already there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfmsd.data import DataConfig
from dfmsd.detectors import Detector, DetectorConfig, TorchvisionDetector
from dfmsd.distill.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig

if TYPE_CHECKING:
    from dfmsd.engine.run import Result


def distill(
    student: Detector | DetectorConfig,
    teachers: Detector | str | Path | Sequence[Detector | str | Path],
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
    """Distil one or several teachers, one stage each, into a student.

    Args:
        student: a detector, trained in place, or what to build.
        teachers: detectors or references (see `StageConfig`), in the order of the stages.
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

    chain = [teachers] if isinstance(teachers, str | Path | Detector) else list(teachers)
    lengths = _share(epochs, len(chain)) if isinstance(epochs, int) else list(epochs)
    if len(lengths) != len(chain):
        raise DfmsdError(f"epochs: {len(lengths)} numbers for {len(chain)} teachers; give one for each, or their sum")
    # A name that no reference can have: config.yaml tells that the stage had a teacher, and nobody loads another one.
    names = [f"python:teacher{i}" if isinstance(t, Detector) else str(t) for i, t in enumerate(chain, 1)]
    config = DistillConfig(
        out=str(out),
        data=data if isinstance(data, DataConfig) else DataConfig(root=str(data)),
        student=_config_of(student),
        stages=[StageConfig(epochs=n, teacher=name) for n, name in zip(lengths, names, strict=True)],
        loss={} if loss is None else loss,
        **options,
    )
    return engine.distill(
        config,
        student=student if isinstance(student, Detector) else None,
        teachers={name: t for name, t in zip(names, chain, strict=True) if isinstance(t, Detector)},
        allow_weak_teacher=allow_weak_teacher,
        resume=resume,
        overwrite=overwrite,
    )


def _share(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _config_of(student: Detector | DetectorConfig) -> DetectorConfig:
    """Give what the student is made of, which the delivered file has to tell."""
    if isinstance(student, DetectorConfig):
        return student
    if isinstance(student, TorchvisionDetector) and student.config is not None:
        return student.config
    raise DfmsdError(
        f"student: this {type(student).__name__} was not built from a configuration, so that it could not be saved; "
        "give a DetectorConfig, or a detector made by build_detector"
    )
