"""Warnings about results that should not be taken at face value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dfmsd.engine.config import DistillConfig
from dfmsd.reporting.records import Column, RunRecord, Series
from dfmsd.reporting.results import ModelRow, percent
from dfmsd.utils.coerce import AUTO

MIN_DROP = 0.2
"""Relative drop from which a loss term counts as falling."""
MIN_RISE = 0.02
"""Rise below which a correlation counts as flat."""
MIN_CORRELATION = 0.1
"""Correlation below which a level has hardly learned from its teacher."""
MAX_LOST_AP = 1.0
"""Percentage points by which the last epoch may fall below the best one."""
EDGE_SHARE = 0.1
"""Share of a stage's steps averaged at its start and at its end."""


def run_warnings(record: RunRecord, config: DistillConfig | None, teachers: Sequence[ModelRow]) -> list[str]:
    """List warnings about one run.

    Args:
        record: of the run.
        config: of the run, if it can be read.
        teachers: models measured on the same images.
    """
    warnings = []
    if record.log is not None and record.log.not_finite:
        warnings.append(f"Not finite in some steps: {', '.join(record.log.not_finite)}.")
    if record.config is not None and config is None:
        warnings.append("This version of dfmsd cannot read config.yaml, so everything derived from it is missing.")
    student_ap = percent((record.metrics or {}).get("AP"))
    for teacher in teachers:
        ap = teacher.ap()
        if student_ap is not None and ap is not None and ap <= student_ap:
            warnings.append(f"{teacher.name} reaches {ap:.1f} AP, no more than its student's {student_ap:.1f}.")
    if config is not None and config.deliver == "best":
        warnings.append(
            "The best epoch was delivered, selected on the images that AP is measured on, so AP is optimistic."
        )
    if config is not None and config.data.holdout:
        warnings.append("AP is measured on held-out training images (data.holdout), not on the val split.")
    if config is not None and config.labeler is not None:
        warnings += _pseudo_labels(config)
    return warnings + _ended_early(record, config) + _lost_ap(record, config) + _learning(record)


def baseline_warnings(
    record: RunRecord, baseline: RunRecord, config: DistillConfig | None, baseline_config: DistillConfig | None
) -> list[str]:
    """List differences between a run and its baseline other than the teachers."""
    warnings = []
    if record.trained_epochs != baseline.trained_epochs:
        extra = 0 if config is None else len(config.epochs_without_labels)
        if not extra or record.trained_epochs != (baseline.trained_epochs or 0) + extra:
            return ["The two runs were trained for different numbers of epochs, so the comparison is not fair."]
        warnings.append(f"The run was trained for {extra} more epochs than its baseline, without labels.")
    if config is None or baseline_config is None:
        return warnings
    if baseline_config.stages != baseline_config.without_teachers().stages or baseline_config.ancestor:
        warnings.append(f"{baseline.folder.name} has teachers itself, so it is not a baseline.")
    for name in ("data", "optim", "seed", "student", "precision", "deliver"):
        if getattr(config.without_teachers(), name) != getattr(baseline_config.without_teachers(), name):
            warnings.append(f"The two runs differ in `{name}` of the config, not only in the teachers.")
    return warnings


def _pseudo_labels(config: DistillConfig) -> list[str]:
    warnings = []
    if not config.teaches:
        warnings.append(f"No stage has a teacher, but {config.labeler} labeled images for the run (data.pseudo).")
    if config.data.holdout and config.data.pseudo.score == AUTO:
        warnings.append(
            "The scores for pseudo-labels come from the images that AP is measured on, so AP is slightly optimistic."
        )
    return warnings


def _ended_early(record: RunRecord, config: DistillConfig | None) -> list[str]:
    """Warn about a finished run that `patience` or `max_hours` ended before its last epoch."""
    epochs = record.trained_epochs
    if config is None or (config.patience is None and config.max_hours is None):
        return []
    if record.metrics is None or epochs is None or epochs >= config.epochs:
        return []
    return [f"Training ended after epoch {epochs} of {config.epochs}, without the lowest learning rates."]


def _lost_ap(record: RunRecord, config: DistillConfig | None) -> list[str]:
    """Warn about an AP that fell towards the end of training, and was delivered."""
    if record.epochs is None or (config is not None and config.deliver == "best"):
        return []
    known = record.epochs.columns["AP"]
    known = 100 * known[np.isfinite(known)]
    if len(known) < 2:
        return []
    delivered = percent((record.metrics or {}).get("AP"))
    ended = known[-1] if delivered is None else delivered
    if known.max() - ended < MAX_LOST_AP:
        return []
    epoch = int(record.epochs.columns["epoch"][np.nanargmax(record.epochs.columns["AP"])]) + 1
    return [f"AP peaked at {known.max():.1f} after epoch {epoch} and ended at {ended:.1f}."]


def _learning(record: RunRecord) -> list[str]:
    """Warn about levels that do not approach their teacher."""
    if record.log is None:
        return []
    warnings = []
    for name in record.correlations:
        prefix, level = name.rsplit("/", 1)
        stage = max((stage for stage in _stages(record.log, name)), default=None)
        if stage is None:
            continue
        first, last = _edges(record.log, name, stage)
        mask = f"{prefix.removesuffix('pearson')}mask/{level}"
        if last < MIN_CORRELATION:
            warnings.append(
                f"{name} ends stage {stage:.0f} at {last:.2f}: this level has hardly learned from the teacher."
            )
        elif mask in record.log.columns and stage in _stages(record.log, mask):
            before, after = _edges(record.log, mask, stage)
            if after < (1 - MIN_DROP) * before and last - first < MIN_RISE:
                warnings.append(
                    f"{mask} falls in stage {stage:.0f} but {name} does not rise ({first:.2f} to {last:.2f}): the "
                    "training-only layers learn instead of the student."
                )
    return warnings


def _stages(log: Series, name: str) -> list[float]:
    return [float(stage) for stage in np.unique(log.stages[np.isfinite(log.columns[name])])]


def _edges(log: Series, name: str, stage: float) -> tuple[float, float]:
    """Return a column's mean at the start and at the end of a stage."""
    values: Column = log.columns[name][(log.stages == stage) & np.isfinite(log.columns[name])]
    span = max(1, round(EDGE_SHARE * len(values)))
    return float(values[:span].mean()), float(values[-span:].mean())
