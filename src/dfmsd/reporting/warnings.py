"""What a reader of the numbers should know before they believe them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dfmsd.engine.config import DistillConfig
from dfmsd.reporting.records import Column, RunRecord, Series
from dfmsd.reporting.scores import Contender, percent

FALLEN = 0.2
"""Share of a term that has to go for it to count as falling."""
FLAT = 0.02
"""Rise of a correlation below which it counts as flat."""
UNLEARNT = 0.1
"""Correlation below which a level has not learnt from its teacher."""
LOST_AP = 1.0
"""Percent of AP by which the last epoch may stay behind the best one."""
AT_AN_END = 0.1
"""Share of a stage's steps whose mean is taken for its beginning, and for its end."""


def warnings_of(record: RunRecord, plan: DistillConfig | None, teachers: Sequence[Contender]) -> list[str]:
    """Look at one run.

    Args:
        record: of the run.
        plan: its config, if it can be read.
        teachers: those whose AP is known, measured on the same images.
    """
    told = []
    if record.log is not None and record.log.not_finite:
        told.append(f"Not finite in some steps: {', '.join(record.log.not_finite)}.")
    if record.config is not None and plan is None:
        told.append("This version of dfmsd cannot read config.yaml: what follows from it is left out.")
    own = percent((record.metrics or {}).get("AP"))
    for teacher in teachers:
        ap = teacher.ap()
        if own is not None and ap is not None and ap <= own:
            told.append(f"{teacher.name} has {ap:.1f} AP, no more than the {own:.1f} of its student.")
    if plan is not None and plan.deliver == "best":
        told.append("Delivered is the best epoch, chosen on the images that AP is measured on: AP is optimistic.")
    if plan is not None and plan.data.holdout:
        told.append("AP is measured on training images that were put aside (data.holdout), not on the val split.")
    return told + _lost(record, plan) + _learning(record)


def against_baseline(
    record: RunRecord, baseline: RunRecord, plan: DistillConfig | None, other: DistillConfig | None
) -> list[str]:
    """Tell in what two runs differ beside the teachers: then their difference is not the teachers' doing alone."""
    if record.trained_epochs != baseline.trained_epochs:
        return ["The two were not trained for the same number of epochs: the comparison is not fair."]
    if plan is None or other is None:
        return []
    told = []
    if other.stages != other.without_teachers().stages or other.inherit:
        told.append(f"{baseline.folder.name} has teachers itself: it is no baseline.")
    for name in ("data", "optim", "seed", "student", "precision", "deliver"):
        if getattr(plan.without_teachers(), name) != getattr(other.without_teachers(), name):
            told.append(f"The two differ in `{name}` of the config, not in the teachers alone.")
    return told


def _lost(record: RunRecord, plan: DistillConfig | None) -> list[str]:
    """Tell of an AP that fell towards the end."""
    if record.epochs is None or (plan is not None and plan.deliver == "best"):
        return []
    known = record.epochs.columns["AP"]
    known = 100 * known[np.isfinite(known)]
    if len(known) < 2 or known.max() - known[-1] < LOST_AP:
        return []
    epoch = int(record.epochs.columns["epoch"][np.nanargmax(record.epochs.columns["AP"])]) + 1
    return [f"AP was {known.max():.1f} after epoch {epoch} and is {known[-1]:.1f} in the end."]


def _learning(record: RunRecord) -> list[str]:
    """Tell of levels that do not come nearer to their teacher."""
    if record.log is None:
        return []
    told = []
    for name in record.correlations:
        where, level = name.rsplit("/", 1)
        stage = max((stage for stage in _stages(record.log, name)), default=None)
        if stage is None:
            continue
        first, last = _ends(record.log, name, stage)
        mask = f"{where.removesuffix('pearson')}mask/{level}"
        if last < UNLEARNT:
            told.append(f"{name} ends stage {stage:.0f} at {last:.2f}: this level has learnt little from the teacher.")
        elif mask in record.log.columns and stage in _stages(record.log, mask):
            before, after = _ends(record.log, mask, stage)
            if after < (1 - FALLEN) * before and last - first < FLAT:
                told.append(
                    f"{mask} falls in stage {stage:.0f} but {name} does not rise ({first:.2f} to {last:.2f}): the "
                    "training-only layers learn instead of the student."
                )
    return told


def _stages(log: Series, name: str) -> list[float]:
    return [float(stage) for stage in np.unique(log.stages[np.isfinite(log.columns[name])])]


def _ends(log: Series, name: str, stage: float) -> tuple[float, float]:
    """Give a column's mean at the beginning and at the end of a stage."""
    values: Column = log.columns[name][(log.stages == stage) & np.isfinite(log.columns[name])]
    span = max(1, round(AT_AN_END * len(values)))
    return float(values[:span].mean()), float(values[-span:].mean())
