"""Stages with a near teacher -> ordinary stages, and how that teacher is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig, Recipe, TrainConfig
from dfmsd.engine.runconfig import RunConfig
from dfmsd.engine.saved_config import FREE_ON_RESUME, to_yaml
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig, replace_loss
from dfmsd.losses.config import loss_parts
from dfmsd.runfolder import RunFolder

CHOSEN = ("backbone", "epochs", "out")
"""Fields of `NearConfig` that may be left out, and that `dfmsd.engine.nearchoice.settle` fills in."""


class Expanded(NamedTuple):
    """A run of ordinary stages, and the teachers that it makes."""

    config: DistillConfig
    recipes: dict[str, Recipe]
    """Run folder of a near teacher -> its config."""


def expand(config: DistillConfig) -> Expanded:
    """Replace each stage that has a near teacher by two: the near teacher's, and its own teacher's after it.

    Args:
        config: of a run, with every field of its near teachers, as in the ``config.yaml`` of a run folder.

    Raises:
        DfmsdError: a field of a near teacher is missing.
    """
    stages: list[StageConfig] = []
    recipes: dict[str, Recipe] = {}
    for index, stage in enumerate(config.stages):
        if stage.near is False:
            stages.append(stage)
            continue
        _check_chosen(index, stage)
        recipe = near_recipe(config, stage)
        recipes[recipe.out] = recipe
        first, second = stage.lengths
        loss = _loss_between_alike(config.loss, stage.loss)
        stages.append(replace(stage, epochs=first, teacher=recipe.out, loss=loss, near=False))
        stages.append(replace(stage, epochs=second, near=False))
    return Expanded(replace(config, stages=stages), recipes)


def near_recipe(config: DistillConfig, stage: StageConfig) -> Recipe:
    """Return the config of a stage's near teacher: the student's, on another backbone and with seed 0.

    The seed is the same for all students, so that runs that differ in theirs share one near teacher.

    Args:
        config: of the student's run.
        stage: its ``near`` has every field.
    """
    near = _near_of(stage)
    out, epochs = near.out, near.epochs
    assert out is not None
    assert epochs is not None
    model = near_model(config.student, near)
    # its own length is chosen, and may be shorter than the run's
    own: dict[str, Any] = {"eval_every": min(config.eval_every, epochs), "patience": None, "max_hours": None}
    if near.bridge:
        lesson = replace(stage, epochs=epochs, labels=True, near=False)
        return replace(config, out=out, seed=0, student=model, stages=[lesson], inherit=False, **own)
    shared: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    shared |= own | {"out": out, "seed": 0, "data": config.data.labeled_only()}
    return TrainConfig(**shared, model=model, epochs=epochs)


def near_model(student: DetectorConfig, near: NearConfig) -> DetectorConfig:
    """Return the student's detector on the backbone of a near teacher; random layers are not frozen."""
    frozen = student.frozen_stride if near.pretrained else 0
    return replace(
        student,
        backbone=near.backbone or student.backbone,
        pretrained=near.pretrained,
        frozen_stride=frozen,
        init=None,
    )


def near_folder(config: DistillConfig, stage: StageConfig) -> str:
    """Return a folder for a stage's near teacher, next to the student's and named after its config.

    A bridge also depends on its teacher's weights, as far as they lie in a run folder.

    Args:
        config: of the student's run.
        stage: its ``near`` has every field but ``out``.
    """
    named = replace(stage, near=replace(_near_of(stage), out="near"))
    recipe = replace(near_recipe(config, named), **{**FREE_ON_RESUME, "out": "near"})
    digest = hashlib.sha256(to_yaml(recipe).encode())
    weights = RunFolder(Path(stage.teachers[0])).weights_file
    if _near_of(stage).bridge and weights.is_file():
        digest.update(weights.read_bytes())
    model = recipe.as_distillation().student
    name = f"near-{model.arch}-{model.backbone.replace('/', '-')}-{digest.hexdigest()[:8]}"
    return str(Path(config.out).parent / name)


def _near_of(stage: StageConfig) -> NearConfig:
    assert isinstance(stage.near, NearConfig)
    return stage.near


def _check_chosen(index: int, stage: StageConfig) -> None:
    missing = [name for name in CHOSEN if getattr(stage.near, name, None) is None]
    if missing:
        raise DfmsdError(
            f"stages.{index}.near: {', '.join(missing)} missing, which a run writes into its config.yaml; add them"
        )


def _loss_between_alike(loss: LossConfig, stage_loss: LossConfig) -> LossConfig:
    """Return a stage's loss for a teacher with the student's levels, where a mapping of level names has no meaning."""
    parts = loss_parts(replace_loss(loss, stage_loss))
    if not any(isinstance(options.get("pairing"), Mapping) for options in parts.values()):
        return stage_loss
    entries = [
        {"name": name, **options, **({"pairing": "stride"} if isinstance(options.get("pairing"), Mapping) else {})}
        for name, options in parts.items()
    ]
    return entries if len(entries) > 1 else entries[0]
