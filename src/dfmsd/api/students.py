"""Students and teachers as Python values: names, configs, references or detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from dfmsd.detectors import Detector, DetectorConfig
from dfmsd.detectors.config import OWN_ARCHS, torchvision_archs
from dfmsd.detectors.frameworks import FRAMEWORKS
from dfmsd.distillation.stages import StageConfig, taught_by
from dfmsd.engine.config import DistillConfig, Recipe, TrainConfig
from dfmsd.engine.configfile import read_recipe
from dfmsd.errors import DfmsdError, suggest
from dfmsd.utils.coerce import coerce

Student = Detector | DetectorConfig | TrainConfig | str | Path
Teacher = Detector | TrainConfig | DistillConfig | str | Path
Teachers = Teacher | Sequence[Teacher | Sequence[Teacher]]


class Plan(NamedTuple):
    """Stages of a distillation and the teachers that are Python objects."""

    stages: list[StageConfig]
    detectors: dict[str, Detector]
    """Reference in the stages -> detector."""
    recipes: dict[str, Recipe]
    """Reference in the stages -> teacher to make first, unless it already was."""


def resolve_student(student: object) -> tuple[DetectorConfig, Detector | None]:
    """Find out what to train: a detector that exists, or the config of one to build.

    Args:
        student: ``arch`` or ``arch/backbone`` (random weights); a reference to a detector whose weights the student
            starts with, see ``init`` in `DetectorConfig`; the YAML of a training or distillation, or a `TrainConfig`,
            which stand for their detector; a `DetectorConfig`; or a detector.

    Returns:
        The config that the delivered file stores, and the detector unless it is to be built.

    Raises:
        DfmsdError: unknown name, a detector that could not be saved, or another type.
    """
    if isinstance(student, str | Path):
        student = _named_student(str(student))
    if isinstance(student, TrainConfig):
        student = student.model
    if isinstance(student, DetectorConfig):
        return student, None
    if not isinstance(student, Detector):
        raise DfmsdError(
            f"student: expected a name such as fcos/mobilenetv3_small_050, a DetectorConfig, a run folder or a "
            f"Detector, got {type(student).__name__}"
        )
    if student.config is None:
        raise DfmsdError(
            f"student: this {type(student).__name__} was not built from a config, so it could not be saved; pass a "
            "DetectorConfig, a detector made by build_detector, or your own module as a ModuleDetector"
        )
    return replace(student.config, init=None), student


def _named_student(name: str) -> DetectorConfig:
    if name.startswith(tuple(FRAMEWORKS)):
        layout_alone = name.endswith((".yaml", ".yml", ".py"))
        return DetectorConfig(arch=name, pretrained=not layout_alone)
    if name.endswith((".yaml", ".yml")):
        return read_recipe(Path(name)).as_distillation().student
    arch, _, backbone = name.partition("/")
    if arch in OWN_ARCHS or name in torchvision_archs():
        return DetectorConfig(arch=arch, backbone=backbone) if backbone else DetectorConfig(arch=arch)

    from dfmsd.detectors import adopt_architecture  # here, since torchvision and timm take seconds to import

    architectures = f"an architecture is one of {', '.join(OWN_ARCHS)}, with a backbone as in fcos/resnet18"
    try:
        return adopt_architecture(DetectorConfig(init=name))
    except DfmsdError as error:
        raise DfmsdError(
            f"student: {error}; {suggest(arch, [*OWN_ARCHS, *torchvision_archs()], architectures)}"
        ) from error


def plan_stages(teachers: object, epochs: int | Sequence[int]) -> Plan:
    """Plan one stage for each entry of ``teachers``.

    Args:
        teachers: one teacher, or a list with an entry for each stage; an entry that is a list teaches at once.
        epochs: of each stage, or of all of them, shared evenly.

    Raises:
        DfmsdError: a teacher of another type, an empty list of teachers, or epochs that do not fit the stages.
    """
    entries = [_as_list(entry) for entry in _as_list(teachers)]
    if not all(entries):
        raise DfmsdError("teachers: a stage's list is empty; name a teacher in it, or leave it out")
    epochs = coerce(epochs, int | list[int], "epochs")
    lengths = _share(epochs, len(entries)) if isinstance(epochs, int) else list(epochs)
    if len(lengths) != len(entries):
        raise DfmsdError(
            f"epochs: {len(lengths)} numbers for {len(entries)} stages; pass one for each stage, or their sum"
        )
    plan, numbers = Plan([], {}, {}), count(1)
    for length, entry in zip(lengths, entries, strict=True):
        names = [_add_teacher(teacher, next(numbers), plan) for teacher in entry]
        plan.stages.append(taught_by(length, names))
    return plan


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _share(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _add_teacher(teacher: object, number: int, plan: Plan) -> str:
    """Return the reference of a teacher, and enter it into the plan where no file holds it yet."""
    if isinstance(teacher, Detector):
        name = f"python:teacher{number}"  # not a reference, so that a resumed run cannot load another detector
        plan.detectors[name] = teacher
        return name
    if isinstance(teacher, TrainConfig | DistillConfig):
        plan.recipes[teacher.out] = teacher
        return teacher.out
    if isinstance(teacher, str | Path):
        return str(teacher)
    raise DfmsdError(
        f"teachers: expected run folders, other references, configs or Detectors, got {type(teacher).__name__}; a "
        "teacher needs trained weights"
    )
