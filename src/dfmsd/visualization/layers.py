"""Student, teacher and the training-only layers between them, from the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfmsd import losses
from dfmsd.detectors import Detector
from dfmsd.distillation.task import layers_name
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config, read_run_config
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder

LAYERS = "task.trainable.criteria."
"""How the names of the training-only layers begin in a checkpoint."""


@dataclass(frozen=True)
class Lesson:
    """One stage of a teacher, ready to be looked at.

    Attributes:
        stage: from 1.
        teacher: its name.
        criterion: the loss, in eval mode.
        trained: whether its layers are those of the run; otherwise they are fresh, and say nothing.
        note: why they are not.
    """

    stage: int
    teacher: str
    criterion: losses.Criterion | losses.CriterionSum
    trained: bool
    note: str = ""


def lessons(model: str, student: Detector, teacher: str, detector: Detector) -> list[Lesson]:
    """Give the stages in which a teacher taught a run's student, with the layers of the run's checkpoint.

    Where the run tells of no such stage, there is one with the default loss and layers that are not trained.

    Args:
        model: reference of the student, a run folder if there is to be more than its features.
        student: the detector itself.
        teacher: its reference, as in the run's config or another path to the same folder.
        detector: the teacher itself.

    Raises:
        DfmsdError: the run's config cannot be read, or the two detectors share too few levels.
    """
    run = Path(model)
    if not RunFolder(run).exists:
        note = f"{model} is no run folder, so the training-only layers are not there"
        return [_untrained(1, {}, teacher, student, detector, note)]
    config = read_run_config(run)
    found = [
        (index, place)
        for index, stage in enumerate(config.stages)
        for place, name in enumerate(stage.teachers)
        if _same(name, teacher)
    ]
    if not found:
        note = f"{teacher} is no teacher of {model}, so no layer was trained for the two"
        return [_untrained(1, config.loss, teacher, student, detector, note)]
    state, why = _checkpoint(run, config)
    taught = []
    for index, place in found:
        loss = losses.replace_loss(config.loss, config.stages[index].loss)
        own = _layers(state, layers_name(index, place))
        taught.append(_restored(index + 1, loss, teacher, student, detector, own, why))
    return taught


def _same(name: str, teacher: str) -> bool:
    if name == teacher or Path(name).resolve() == Path(teacher).resolve():
        return True
    if not name.endswith((".yaml", ".yml")) or not Path(name).is_file():
        return False
    return Path(read_config(TrainConfig, Path(name)).out).resolve() == Path(teacher).resolve()


def _checkpoint(run: Path, config: DistillConfig) -> tuple[Mapping[str, Tensor], str]:
    """Give the checkpoint of the delivered student, or the reason why there is none."""
    file = run / f"{config.deliver}.ckpt"
    if not file.is_file():
        return {}, f"{file} is not there, which has the training-only layers"
    try:
        content: Any = torch.load(file, weights_only=True, map_location="cpu")
        return dict(content["state_dict"]), ""
    except Exception as error:  # a damaged archive breaks its reader in any way
        raise DfmsdError(f"{file} cannot be read ({type(error).__name__}); remove it, or restore it") from error


def _layers(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    prefix = f"{LAYERS}{key}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _untrained(
    stage: int, loss: losses.LossConfig, teacher: str, student: Detector, detector: Detector, note: str
) -> Lesson:
    criterion = losses.build_sum(loss, student.levels, detector.levels).eval()
    # a loss without layers of its own has nothing to miss
    return Lesson(stage, teacher, criterion, not any(True for _ in criterion.parameters()), note)


def _restored(
    stage: int,
    loss: losses.LossConfig,
    teacher: str,
    student: Detector,
    detector: Detector,
    state: Mapping[str, Tensor],
    why: str,
) -> Lesson:
    bare = _untrained(stage, loss, teacher, student, detector, why)
    if bare.trained:
        return replace(bare, note="")
    if not state:
        return replace(bare, note=why or "the checkpoint has no such layers")
    try:
        bare.criterion.load_state_dict(state)
    except RuntimeError:
        why = "the checkpoint's layers do not fit this student, teacher and loss"
        return _untrained(stage, loss, teacher, student, detector, why)
    return replace(bare, trained=True, note="")
