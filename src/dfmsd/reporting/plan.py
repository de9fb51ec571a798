"""What a run was told to do, read from its config.yaml, and what follows from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dfmsd import losses
from dfmsd.distillation.balance import balanced_groups
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config, read_run_config
from dfmsd.errors import DfmsdError
from dfmsd.losses.align import Align, LevelPair
from dfmsd.reporting.records import RunRecord
from dfmsd.runfolder import RunFolder
from dfmsd.types import LevelSpec

_TWO_LEVELS = [LevelSpec("fine", 16, 8), LevelSpec("coarse", 16, 16)]


def read_plan(record: RunRecord) -> DistillConfig | None:
    """Give the config of a run; none where this version cannot read it, or the folder has none."""
    if record.config is None:
        return None
    try:
        return read_run_config(record.folder)
    except DfmsdError:
        return None


def teachers_of(plan: DistillConfig | None) -> list[str]:
    """Give the references of all teachers, each once."""
    return list(dict.fromkeys(name for stage in plan.stages for name in stage.teachers)) if plan else []


def folder_of(reference: str) -> Path | None:
    """Give the run folder that a teacher's reference means; none where it means no run, or one that is not there."""
    folder = Path(reference)
    if reference.endswith((".yaml", ".yml")):
        try:
            folder = Path(read_config(TrainConfig, folder).out)
        except DfmsdError:
            return None
    return folder if RunFolder(folder).exists else None


def term_factors(plan: DistillConfig, balance: Mapping[str, Any] | None) -> dict[str, dict[int, float]]:
    """Tell what each logged term was multiplied by: the loss's weight and the factor of the automatic balance.

    Args:
        plan: of the run.
        balance: what ``balance.json`` holds.

    Returns:
        ``mask``, or ``T2.mask`` where a stage has several teachers -> stage, from 1 -> factor; a stage whose factor
        nobody wrote down is left out.
    """
    factors: dict[str, dict[int, float]] = {}
    for number, stage in enumerate(plan.stages, 1):
        for place in range(len(stage.teachers)):
            prefix = f"T{place + 1}." if len(stage.teachers) > 1 else ""
            chosen = (balance or {}).get(str(number), {})
            for part in _criteria(losses.replace_loss(plan.loss, stage.loss)):
                groups = balanced_groups(part.feature_terms, plan.balance_by) if plan.balance is not None else {}
                for term in part.terms:
                    key = prefix + groups[term] if term in groups else None
                    if key is None or key in chosen:
                        factor = 1.0 if key is None else chosen[key]
                        factors.setdefault(prefix + term, {})[number] = part.weight * factor
    return factors


class PairedLevel(NamedTuple):
    """One line of the pairing table."""

    stage: int
    teacher: str
    pair: LevelPair
    alignment: str


def paired_levels(
    plan: DistillConfig, student: Sequence[LevelSpec], teachers: Mapping[str, Sequence[LevelSpec]]
) -> list[PairedLevel]:
    """Tell which level learns from which, and what makes the two alike.

    Args:
        plan: of the run.
        student: its levels.
        teachers: reference -> levels; teachers that are not here are left out.
    """
    found = []
    for number, stage in enumerate(plan.stages, 1):
        for name in stage.teachers:
            if name not in teachers:
                continue
            try:
                with torch.device("meta"):  # no memory, no random numbers
                    loss = losses.replace_loss(plan.loss, stage.loss)
                    criterion = losses.build_sum(loss, list(student), list(teachers[name]))
            except DfmsdError:  # the teacher's folder holds another detector by now
                continue
            layers = dict(zip(criterion.pairs, criterion.align, strict=True))
            found += [PairedLevel(number, name, pair, _alignment(pair, layer)) for pair, layer in layers.items()]
    return found


def _alignment(pair: LevelPair, layer: nn.Module) -> str:
    assert isinstance(layer, Align)
    steps = [] if isinstance(layer.project, nn.Identity) else ["1x1 convolution"]
    if pair.student.stride != pair.teacher.stride:
        steps.append(f"{layer.resize} resized")
    return ", ".join(steps) or "none needed"


def _criteria(loss: losses.LossConfig) -> list[losses.Criterion]:
    with torch.device("meta"):
        criterion = losses.build_sum(loss, _TWO_LEVELS, _TWO_LEVELS)
    return [criterion] if isinstance(criterion, losses.Criterion) else criterion.criteria
