"""Functions that train a detector: distill and train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from dfmsd.api.home import expands_home
from dfmsd.api.settings import build_config, check_names, check_switches, resolve_config
from dfmsd.api.students import Student, Teachers, plan_stages, resolve_student
from dfmsd.data import DataConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dfmsd.api.settings import DistillChanges, DistillSettings, RunSettings, TrainChanges
    from dfmsd.detectors import Detector
    from dfmsd.engine.run import Result

# Each function imports the engine itself: importing Lightning takes longer than refusing most bad input.


@overload
def distill(
    config: DistillConfig | str | Path,
    /,
    *,
    no_distill: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    report: bool = True,
    **settings: Unpack[DistillChanges],
) -> Result: ...
@overload
def distill(
    student: Student,
    teachers: Teachers,
    data: str | Path | DataConfig,
    out: str | Path,
    *,
    epochs: int | Sequence[int] = 12,
    loss: LossConfig = ...,
    no_distill: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    report: bool = True,
    **settings: Unpack[DistillSettings],
) -> Result: ...
@expands_home
def distill(
    config: Any = None,
    /,
    teachers: Any = None,
    data: Any = None,
    out: Any = None,
    *,
    epochs: Any = None,
    no_distill: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    report: bool = True,
    **settings: Any,
) -> Result:
    """Distill one or several teachers into a student, stage by stage.

    Called as ``distill(config, **settings)`` or as ``distill(student, teachers, data, out, **settings)``.

    Args:
        config: a `DistillConfig`, or the path of its YAML file: the whole run.
        student: what to train: an architecture (``"fcos"``) or ``"<architecture>/<backbone>"``, a `DetectorConfig`, a
            reference as for a teacher, whose weights the student starts with, or a `Detector`, trained in place.
        teachers: one teacher, or a list with an entry for each stage; an entry that is a list teaches at once, as in
            ``[first, [second, third]]``. A teacher is a reference (run folder, weights file, torchvision weight name,
            ``torchvision:...``, ``hf:...``, ``mmdet:...``, ``ultralytics:...``, or the YAML file of a training or
            distillation), a `TrainConfig`, a `DistillConfig`, or a `Detector`. Those described by a config are made on
            first use.
        data: data set folder, ``"digits"``, or a `DataConfig`.
        out: run folder.
        epochs: of each stage, or of all stages in total, shared evenly.
        no_distill: train the baseline: the same loop without teachers.
        resume: continue the unfinished run in ``out``.
        overwrite: delete the contents of ``out`` first.
        allow_weak_teacher: accept a teacher with a low AP.
        check_images: validation images of the pre-flight; None uses all.
        report: write ``report.html`` into the run folder.
        **settings: keys of `DistillConfig`, such as ``seed``, ``optim``, ``loss`` or ``balance``. With a config they
            replace its values.

    Returns:
        Metrics (``result.metrics["AP"]``), run folder (``result.run``) and trained detector (``result.student``).

    Raises:
        DfmsdError: bad input; nothing has been trained.
        KeyboardInterrupt: Ctrl-C, SIGTERM or the like ended the run after saving it; ``resume=True`` continues it.
    """
    from dfmsd.engine import run as engine

    check_names(settings, DistillConfig, distill)
    check_switches(no_distill=no_distill, resume=resume, overwrite=overwrite, allow_weak_teacher=allow_weak_teacher)
    config, objects = resolve_distillation(config, teachers, data, out, epochs, settings)
    result = engine.distill(
        config,
        no_distill=no_distill,
        resume=resume,
        overwrite=overwrite,
        allow_weak_teacher=allow_weak_teacher,
        check_images=check_images,
        **objects,
    )
    return _reported(result, report)


def resolve_distillation(
    config: Any, teachers: Any, data: Any, out: Any, epochs: Any, settings: Mapping[str, Any]
) -> tuple[DistillConfig, dict[str, Any]]:
    """Build the config of a run from the arguments of `distill`.

    Returns:
        The config, and the student, teachers and recipes that are Python objects, as keywords of the engine.

    Raises:
        DfmsdError: arguments that are missing, or do not go together.
    """
    settings = {**settings, **{key: value for key, value in {"data": data, "out": out}.items() if value is not None}}
    if isinstance(config, DistillConfig) and teachers is not None:
        raise DfmsdError("teachers: the config states those of each stage; replace them with stages=[...]")
    if teachers is None and _is_whole_run(config, DistillConfig):
        if epochs is not None:
            raise DfmsdError("epochs: the config states those of each stage; replace them with stages=[...]")
        return resolve_config(DistillConfig, config, settings), {}
    _refuse(settings, "stages", "teachers and epochs")
    _refuse(settings if config is not None else {}, "student", "the student as first argument")
    student = settings.pop("student", config)
    _require(DistillConfig, student=student, teachers=teachers, data=data, out=out)
    plan = plan_stages(teachers, 12 if epochs is None else epochs)
    built, detector = resolve_student(student)
    resolved = build_config(DistillConfig, {**settings, "student": built, "stages": plan.stages})
    return resolved, {"student": detector, "teachers": plan.detectors, "recipes": plan.recipes}


@overload
def train(
    config: TrainConfig | str | Path,
    /,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    **settings: Unpack[TrainChanges],
) -> Result: ...
@overload
def train(
    model: Student,
    data: str | Path | DataConfig,
    out: str | Path,
    *,
    epochs: int = 12,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    **settings: Unpack[RunSettings],
) -> Result: ...
@expands_home
def train(
    config: Any = None,
    /,
    data: Any = None,
    out: Any = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    **settings: Any,
) -> Result:
    """Train a detector on labels alone, in the same loop as `distill`.

    Called as ``train(config, **settings)`` or as ``train(model, data, out, **settings)``.

    Args:
        config: a `TrainConfig`, or the path of its YAML file: the whole run.
        model: what to train, as the ``student`` of `distill`.
        data: data set folder, ``"digits"``, or a `DataConfig`.
        out: run folder.
        resume: continue the unfinished run in ``out``.
        overwrite: delete the contents of ``out`` first.
        report: write ``report.html`` into the run folder.
        **settings: keys of `TrainConfig`, such as ``epochs``, ``seed`` or ``optim``. With a config they replace its
            values.

    Returns:
        Metrics, run folder and trained detector.

    Raises:
        DfmsdError: bad input; nothing has been trained.
        KeyboardInterrupt: Ctrl-C, SIGTERM or the like ended the run after saving it; ``resume=True`` continues it.
    """
    from dfmsd.engine import run as engine

    check_names(settings, TrainConfig, train)
    check_switches(resume=resume, overwrite=overwrite)
    settings |= {key: value for key, value in {"data": data, "out": out}.items() if value is not None}
    detector: Detector | None = None
    if _is_whole_run(config, TrainConfig):
        config = resolve_config(TrainConfig, config, settings)
    else:
        model = settings.pop("model", config)
        _require(TrainConfig, model=model, data=data, out=out)
        built, detector = resolve_student(model)
        config = build_config(TrainConfig, {**settings, "model": built})
    result = engine.distill(
        config.as_distillation(), resume=resume, overwrite=overwrite, student=detector, saved_as=config
    )
    return _reported(result, report)


def _is_whole_run(value: object, kind: type[Any]) -> bool:
    return isinstance(value, kind) or str(value).endswith((".yaml", ".yml"))


def _refuse(settings: Mapping[str, object], name: str, others: str) -> None:
    if name in settings:
        raise DfmsdError(f"{name}: already described by {others}; leave one of them out")


def _require(kind: type[Any], **arguments: object) -> None:
    missing = [name for name, value in arguments.items() if value is None]
    if missing:
        raise DfmsdError(
            f"{missing[0]}: missing; pass {missing[0]}=..., or a {kind.__name__} or the path of its YAML file alone"
        )


def _reported(result: Result, report: bool) -> Result:
    """Write the report, in one process only."""
    from dfmsd.reporting import run_report
    from dfmsd.utils.distributed import is_first_process

    if report and is_first_process():
        run_report(result.run)
    return result
