"""Plans of a search: which teachers teach in which stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfmsd.comparison.methods import parse_plan, planned_stages
from dfmsd.detectors import build_detector
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig, Recipe
from dfmsd.engine.near import expand
from dfmsd.engine.nearchoice import settle
from dfmsd.engine.run import build_task
from dfmsd.engine.teachers import untrained_teacher
from dfmsd.errors import DfmsdError
from dfmsd.utils.coerce import AUTO

CONFIG = "config"
"""The stages of the config, as they are written there."""
NEAR = "near+"
"""Before a teacher: a near one teaches first."""
KEY = "tune.space.plan"


@dataclass(frozen=True)
class Plan:
    """Stages of a run.

    Attributes:
        written: as in a config.
        stages: of a trial: near teachers are run folders that all trials share.
        recipes: run folder of a near teacher -> its config.
    """

    written: tuple[StageConfig, ...]
    stages: tuple[StageConfig, ...]
    recipes: Mapping[str, Recipe]


def teachers_of(config: DistillConfig) -> list[str]:
    """Return the references of T1, T2, ..., in the order of the stages."""
    return list(dict.fromkeys(name for stage in config.stages for name in stage.teachers))


def default_plans(config: DistillConfig) -> list[str]:
    """Return the plans that are tried by default.

    They are the config's own, each teacher alone, all in sequence, all at once, and a near teacher before each one that
    `near: auto` would make one for; without those that equal the config's.

    Args:
        config: of a trial.
    """
    numbers = [f"T{number}" for number, _ in enumerate(teachers_of(config), 1)]
    several = ["+".join(numbers), "&".join(numbers)] if 1 < len(numbers) <= config.epochs else []
    near = [f"{NEAR}{number}" for number in numbers if _suggests_near(config, f"{NEAR}{number}")]
    own = tuple(config.stages)
    return [CONFIG, *(name for name in [*numbers, *several, *near] if tuple(plan_stages(config, name)) != own)]


def has_own_basis(name: str) -> bool:
    """Return whether a plan's stages state their basis, so that the parameter ``basis`` has no effect on it."""
    return name.startswith((CONFIG, NEAR))


def plan_stages(config: DistillConfig, name: str) -> list[StageConfig]:
    """Return the stages that a plan stands for.

    Args:
        config: of a trial.
        name: `CONFIG`, a plan such as ``T1+T2`` (see `dfmsd.comparison.methods`), or ``near+T1``.

    Raises:
        DfmsdError: there is no such plan, or it has more teachers or stages than the config.
    """
    if name == CONFIG:
        return list(config.stages)
    planned = parse_plan(name.removeprefix(NEAR), KEY)
    stages = planned_stages(planned, teachers_of(config), config.epochs, f"{KEY}: {name}")
    if name.startswith(NEAR):
        stages[0] = replace(stages[0], near=True)
    return stages


def build_plan(config: DistillConfig, name: str, out: Path) -> Plan:
    """Settle a plan's near teachers, which all trials share, whatever their settings.

    Args:
        config: of a trial.
        name: see `plan_stages`.
        out: folder for the run folders of near teachers.

    Raises:
        DfmsdError: there is no such plan, or its near teacher cannot be made.
    """
    written = [_without_folder(stage) for stage in plan_stages(config, name)]
    try:
        settled = settle(replace(config, out=str(out / "student"), stages=written)).config
    except DfmsdError as error:
        raise DfmsdError(f"{KEY}: {name}: {error}") from error
    expanded, recipes = expand(settled)
    return Plan(tuple(map(_without_folder, settled.stages)), tuple(expanded.stages), recipes)


def refused_plans(config: DistillConfig, plans: Mapping[str, Plan], class_names: Sequence[str]) -> dict[str, str]:
    """Return the plans that do not apply to student, teachers and loss, with the reasons.

    Args:
        config: of a trial.
        plans: to check; no teacher needs to be trained.
        class_names: of the data.

    Raises:
        DfmsdError: the student or a teacher cannot be built.
    """
    student = build_detector(config.student, class_names, config.teacher_classes)
    recipes = {folder: recipe for plan in plans.values() for folder, recipe in plan.recipes.items()}
    names = dict.fromkeys(name for plan in plans.values() for stage in plan.stages for name in stage.teachers)
    teachers = {name: untrained_teacher(name, class_names, recipes) for name in names}
    refused: dict[str, str] = {}
    for name, plan in plans.items():
        try:
            planned = replace(config, stages=list(plan.stages), inherit=False)
            build_task(planned, class_names, student=student, teachers=teachers)
        except DfmsdError as error:
            refused[name] = str(error)
    return refused


def _suggests_near(config: DistillConfig, name: str) -> bool:
    stages = [replace(stage, near=AUTO) for stage in plan_stages(config, name)]
    return settle(replace(config, stages=stages)).config.stages[0].near is not False


def _without_folder(stage: StageConfig) -> StageConfig:
    """Let a stage's near teacher have the folder that its config determines: its data are not those of the config."""
    changes: dict[str, Any] = {"near": replace(stage.near, out=None)} if isinstance(stage.near, NearConfig) else {}
    return replace(stage, **changes)
