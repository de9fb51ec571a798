"""Choice of near teachers: which stages get one, on which backbone, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from dfmsd.detectors import Detector, DetectorConfig, build_detector
from dfmsd.detectors.config import OWN_ARCHS
from dfmsd.detectors.registry import build_model
from dfmsd.detectors.torchvision.heads import arch_of
from dfmsd.detectors.torchvision.wrap import TorchvisionDetector
from dfmsd.detectors.weights import PIP_WEIGHTS
from dfmsd.distillation.near import obstacle
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig, Recipe
from dfmsd.engine.near import near_folder, near_model
from dfmsd.engine.rng import preserved_rng
from dfmsd.engine.teachers import find_recipe, untrained_teacher
from dfmsd.errors import DfmsdError
from dfmsd.losses import replace_loss
from dfmsd.runfolder import RunFolder
from dfmsd.utils.coerce import AUTO

BACKBONES = (*PIP_WEIGHTS, "resnet18", "resnet34", "resnet50", "resnet101")
"""Backbones to choose from, by size: with ImageNet weights in a pip package, then on timm's hub."""
CLASSES = ("object",)
"""Stands for the classes of the data, which hardly change the size of a detector."""


class Settled(NamedTuple):
    """A config whose near teachers are chosen."""

    config: DistillConfig
    notes: list[str]
    """Why an ``auto`` was decided against."""


class Facts(NamedTuple):
    """What the choice depends on of a teacher."""

    arch: str
    parameters: int


def settle(
    config: DistillConfig,
    detectors: Mapping[str, Detector] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    *,
    weights: bool = True,
) -> Settled:
    """Decide every ``near: auto``, and choose the backbone, epochs and folder of every near teacher.

    Args:
        config: of a run.
        detectors: teachers by the names that the stages refer to.
        recipes: configs of teachers by the run folders that the stages refer to.
        weights: look for the ImageNet weights of the near teachers, which may download them.

    Raises:
        DfmsdError: a near teacher that the config asks for cannot be built.
    """
    stages: list[StageConfig] = []
    notes: list[str] = []

    def facts_of(stage: StageConfig) -> Facts:
        (name,) = stage.teachers
        return _facts(name, (detectors or {}).get(name), recipes or {})

    with preserved_rng():
        for index, stage in enumerate(config.stages):
            try:
                if stage.near == AUTO:
                    _check_auto(config, index, facts_of)
                stages.append(_chosen(config, stage, facts_of, weights))
            except DfmsdError as error:
                if stage.near != AUTO:
                    raise DfmsdError(f"stages.{index}.near: {error}") from error
                stages.append(replace(stage, near=False))
                if stage.teachers:
                    notes.append(f"stage {index + 1}: no near teacher for {' and '.join(stage.teachers)}: {error}")
    return Settled(replace(config, stages=stages), notes)


def describe(
    config: DistillConfig, recipes: Mapping[str, Recipe], class_names: Sequence[str], images: int
) -> list[str]:
    """Say in a line for each near teacher what it is, what making it costs, and when it teaches.

    Args:
        config: of the run, with its near teachers chosen.
        recipes: of the near teachers, see `dfmsd.engine.near.expand`.
        class_names: of the data.
        images: number of training images.
    """
    lines = []
    for number, stage in enumerate(config.stages, 1):
        if not isinstance(stage.near, NearConfig):
            continue
        recipe, (teacher,), (first, second) = recipes[stage.near.out or ""], stage.teachers, stage.lengths
        model = recipe.as_distillation().student
        source = f"distilled from {teacher}" if stage.near.bridge else "trained on the labels alone"
        made = f"is {source} for {stage.near.epochs} epochs of {images} images first, into"
        if RunFolder(Path(recipe.out)).finished:
            made = f"was {source} for {stage.near.epochs} epochs and is used again, from"
        lines.append(
            f"stage {number}: a near teacher, {model.arch} on {model.backbone} with "
            f"{parameters(model, len(class_names)):,} parameters, {made} {recipe.out}; it teaches {first} epochs, then "
            f"{teacher} {second} in its channels"
        )
    return lines


@cache
def _count(arch: str, backbone: str, fpn_channels: int, head_convs: int, classes: int) -> int:
    config = DetectorConfig(arch, backbone, fpn_channels, head_convs)
    with torch.device("meta"):  # allocates no memory and draws no random numbers
        return sum(parameter.numel() for parameter in build_model(config, classes).parameters())


def parameters(model: DetectorConfig, classes: int = len(CLASSES)) -> int:
    """Return the number of parameters of a detector that dfmsd builds.

    Args:
        model: one of `OWN_ARCHS`.
        classes: number of classes.

    Raises:
        DfmsdError: the backbone is unknown, or lacks a stride.
    """
    return _count(model.arch, model.backbone, model.fpn_channels, model.head_convs, classes)


def choose_backbone(student: DetectorConfig, teacher: int) -> str:
    """Choose the backbone with which the student's detector is nearest to the geometric mean of both sizes.

    Args:
        student: of the run.
        teacher: its number of parameters.

    Raises:
        DfmsdError: none of `BACKBONES` makes the student's detector bigger.
    """
    size = parameters(student)
    target, best, nearest = math.sqrt(size * teacher), "", math.inf
    for name in BACKBONES:
        found = parameters(replace(student, backbone=name))
        distance = abs(math.log(found / target))
        if found > size and distance < nearest:
            best, nearest = name, distance
        if found > max(size, target):  # the following ones are bigger still
            break
    if not best:
        raise DfmsdError(f"none of {', '.join(BACKBONES)} makes the student bigger; name one as near.backbone")
    return best


def _check_auto(config: DistillConfig, index: int, facts_of: Callable[[StageConfig], Facts]) -> None:
    """Refuse a near teacher where it is not possible or not called for.

    Raises:
        DfmsdError: says why.
    """
    stage = replace(config.stages[index], near=True)
    found = obstacle(stage, config.student, replace_loss(config.loss, stage.loss))
    if found is not None:
        raise DfmsdError(found.reason)
    if any(former.teachers for former in config.stages[:index]):
        raise DfmsdError("only the first teacher of a run gets a near one")
    teacher = facts_of(stage)
    if teacher.arch == config.student.arch:
        raise DfmsdError(f"its architecture is the student's, {teacher.arch}")
    own = parameters(config.student)
    if teacher.parameters <= own:
        raise DfmsdError(f"with {teacher.parameters:,} parameters it is no bigger than the student with {own:,}")


def _chosen(
    config: DistillConfig, stage: StageConfig, facts_of: Callable[[StageConfig], Facts], weights: bool
) -> StageConfig:
    """Return a stage with every field of its near teacher."""
    if stage.near is False:
        return stage
    near = stage.near if isinstance(stage.near, NearConfig) else NearConfig()
    backbone = near.backbone or choose_backbone(config.student, facts_of(stage).parameters)
    near = replace(near, backbone=backbone, epochs=near.epochs or math.ceil(stage.epochs / 2))
    stage = replace(stage, near=near)
    near = replace(near, out=near.out or near_folder(config, stage))
    if weights and near.pretrained and not RunFolder(Path(near.out or "")).finished:
        try:
            build_detector(near_model(config.student, near), CLASSES)
        except DfmsdError as error:
            raise DfmsdError(f"{error}; or set near.pretrained: false") from error
    return replace(stage, near=near)


def _facts(name: str, detector: Detector | None, recipes: Mapping[str, Recipe]) -> Facts:
    recipe = find_recipe(name, recipes) if detector is None else None
    if recipe is not None and (model := recipe.as_distillation().student).arch in OWN_ARCHS:
        return Facts(model.arch, parameters(model))
    detector = detector or untrained_teacher(name, CLASSES, recipes)
    arch = arch_of(detector.model) if isinstance(detector, TorchvisionDetector) else type(detector).__name__
    return Facts(arch, sum(parameter.numel() for parameter in detector.parameters()))
