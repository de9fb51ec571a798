"""What a run's config implies for its report: teachers, loss factors and level pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dfmsd import losses
from dfmsd.distillation.balance import BALANCE
from dfmsd.distillation.basis import build_basis
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_recipe, read_run_config
from dfmsd.errors import DfmsdError
from dfmsd.losses.align import Align, LevelPair
from dfmsd.losses.basis import BasisName
from dfmsd.losses.config import head_methods, loss_parts
from dfmsd.reporting.records import RunRecord
from dfmsd.runfolder import RunFolder
from dfmsd.types import LevelSpec

_TWO_LEVELS = [LevelSpec("fine", 16, 8), LevelSpec("coarse", 16, 16)]


def run_config(record: RunRecord) -> DistillConfig | None:
    """Read the config of a run; None if it is missing or this version cannot read it."""
    if record.config is None:
        return None
    try:
        return read_run_config(record.folder)
    except DfmsdError:
        return None


def teacher_references(config: DistillConfig | None) -> list[str]:
    """List the references of all teachers without duplicates."""
    return list(dict.fromkeys(name for stage in config.stages for name in stage.teachers)) if config else []


def teacher_folder(reference: str) -> Path | None:
    """Return the run folder of a teacher; None if the reference is not a run or the folder does not exist."""
    folder = Path(reference)
    if reference.endswith((".yaml", ".yml")):
        try:
            folder = Path(read_recipe(folder).out)
        except DfmsdError:
            return None
    return folder if RunFolder(folder).exists else None


def same_images(first: DistillConfig | None, second: DistillConfig | None, *, teaches: bool = False) -> bool:
    """Return whether two runs, whose configs are known, were evaluated on the same images of the same size.

    Args:
        first: of a run.
        second: of a run.
        teaches: whether the first run's detector is a teacher of the second one, and may see larger images than it.
    """
    if first is None or second is None:
        return False
    size = (second.teacher_size if teaches else None) or second.data.image_size
    sources = [(config.data.root, str(config.data.val), config.data.holdout) for config in (first, second)]
    return first.data.image_size == size and sources[0] == sources[1]


class TermWeight(NamedTuple):
    """What a logged term was multiplied by in a stage."""

    weight: float
    """Weight of its loss."""
    balance: str | None
    """Logged column with the factor of the automatic balance; None if the term is not balanced."""


def term_weights(config: DistillConfig) -> dict[str, dict[int, TermWeight]]:
    """Return what each logged term was multiplied by.

    Args:
        config: of the run.

    Returns:
        Term (``mask``, or ``T2.mask`` in stages with several teachers) -> stage, from 1 -> weight.
    """
    weights: dict[str, dict[int, TermWeight]] = {}
    for number, stage in enumerate(config.stages, 1):
        for index in range(len(stage.teachers)):
            prefix = f"T{index + 1}." if len(stage.teachers) > 1 else ""
            for criterion in _criteria(losses.replace_loss(config.loss, stage.loss)):
                balanced = criterion.feature_terms if config.balance is not None and stage.labels else ()
                for term in criterion.terms:
                    column = f"{prefix}{BALANCE}" if term in balanced else None
                    weights.setdefault(prefix + term, {})[number] = TermWeight(criterion.weight, column)
    return weights


class PairedLevel(NamedTuple):
    """One row of the table of paired levels."""

    stage: int
    teacher: str
    pair: LevelPair
    alignment: str


def basis_of(record: RunRecord, config: DistillConfig, stage: int, teacher: int) -> BasisName:
    """Return the basis of a stage's teacher: the fitted one, or before the fit the one that the config asks for.

    Args:
        record: of the run.
        config: of the run.
        stage: from 1.
        teacher: in the stage, from 0.
    """
    several = len(config.stages[stage - 1].teachers) > 1
    for level, fit in (record.basis or {}).get(str(stage), {}).items():
        if not several or level.startswith(f"T{teacher + 1}."):
            return "former" if fit.get("reference") == "former" else "student"
    asked = config.stages[stage - 1].basis
    return "own" if asked == "auto" else asked


def paired_levels(
    record: RunRecord, config: DistillConfig, student: Sequence[LevelSpec], teachers: Mapping[str, Sequence[LevelSpec]]
) -> list[PairedLevel]:
    """List which student level learns from which teacher level, and how their shapes are aligned.

    Args:
        record: of the run.
        config: of the run.
        student: levels of the student.
        teachers: reference -> levels; other teachers are left out.
    """
    rows = []
    former: losses.Criterion | losses.CriterionSum | None = None
    for number, stage in enumerate(config.stages, 1):
        reference, former = former, None
        for index, name in enumerate(stage.teachers):
            rotation = basis_of(record, config, number, index)
            unknown = rotation == "former" and reference is None
            if name not in teachers or unknown:
                continue
            loss = losses.replace_loss(config.loss, stage.loss)
            try:
                with torch.device("meta"):  # allocate nothing, draw no random numbers
                    levels = [level.seen_at(config.teacher_scale) for level in teachers[name]]
                    own = losses.build(loss, list(student), levels)
                    basis = build_basis(rotation, own, levels, reference)
                    former = losses.build(loss, list(student), levels, basis=basis)
            except DfmsdError:  # the teacher's folder now holds another detector
                continue
            layers = dict(zip(own.pairs, former.align, strict=True))
            rotated = former.basis is not None
            rows += [
                PairedLevel(number, name, pair, _alignment(pair, layer, rotated=rotated))
                for pair, layer in layers.items()
            ]
    return rows


def _alignment(pair: LevelPair, layer: nn.Module, *, rotated: bool) -> str:
    assert isinstance(layer, Align)
    steps = ["rotation"] * rotated
    steps += [] if isinstance(layer.project, nn.Identity) else ["1x1 convolution"]
    if pair.student.stride != pair.teacher.stride:
        steps.append(f"{layer.resize} resized")
    return ", ".join(steps) or "not needed"


def _criteria(loss: losses.LossConfig) -> list[losses.Criterion]:
    """Build the criteria of a loss between any two pyramids, so without its pairing, which may name levels."""
    on_predictions = head_methods(loss)
    parts = [
        {**options, "name": name} if name in on_predictions else {**options, "name": name, "pairing": "index"}
        for name, options in loss_parts(loss).items()
    ]
    with torch.device("meta"):
        criterion = losses.build(parts, _TWO_LEVELS, _TWO_LEVELS)
    return [criterion] if isinstance(criterion, losses.Criterion) else criterion.criteria
