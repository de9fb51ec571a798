"""How a run went: average precision, losses and correlation over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dfmsd.distillation.balance import MEASURED_STEPS
from dfmsd.engine.config import DistillConfig
from dfmsd.reporting.page import Figure, Section
from dfmsd.reporting.plan import term_factors
from dfmsd.reporting.plots import MAX_POINTS, curve, curves, stage_starts
from dfmsd.reporting.records import Column, RunRecord, Series

TERMS = (
    "loss is the sum that is trained on, task the detector's own part of it, lr the learning rate. The others are the "
    "distillation's, with their weights, a line for each level of the student's pyramid."
)


def precision_section(records: Mapping[str, RunRecord], columns: Sequence[str]) -> Section:
    """Plot AP after each epoch: several columns of one run, or one column of several runs."""
    notes = [
        f"{n} has no epochs.csv: nothing was evaluated during training." for n, r in records.items() if not r.epochs
    ]
    lines = {
        name if len(records) > 1 else column: _percent_curve(record.epochs, column)
        for name, record in records.items()
        for column in columns
        if record.epochs and column in record.epochs.columns
    }
    lines = {name: line for name, line in lines.items() if len(line[0])}
    if lines and max(len(x) for x, _ in lines.values()) == 1:
        notes.append("AP was measured once: there is no curve.")
        lines = {}
    boundaries = {_stage_epochs(record.epochs) for record in records.values() if record.epochs} - {()}
    marks = next(iter(boundaries)) if len(boundaries) == 1 else ()  # runs with unlike stages share no boundary
    figures = [curves("AP in percent", lines, "epochs trained", marks, digits=1)] if lines else []
    return Section("AP during training", notes, figures=figures)


def training_sections(record: RunRecord, plan: DistillConfig | None, suffix: str) -> list[Section]:
    """Plot losses and, for a distillation, the correlation with the teacher.

    Args:
        record: of the run.
        plan: its config, if it can be read.
        suffix: of the sections' titles.
    """
    if record.log is None:
        return [Section(f"Losses{suffix}", ["There is no log.csv with a step in it."])]
    notes = [
        f"{name} was not finite in {count} of {len(record.log.stages)} steps."
        for name, count in record.log.not_finite.items()
    ]
    if len(record.log.stages) > MAX_POINTS:
        notes.append(f"Each point is the mean of neighbouring steps, at most {MAX_POINTS} points a stage.")
    if stage_starts(record.log):
        notes.append("A dashed vertical line marks the beginning of a stage.")
    if record.distils:
        notes.append(TERMS)
    figures = _figures(record.log, record.terms, "")
    sections = [Section(f"Losses{suffix}", notes, figures=figures)] if figures else []
    if record.distils:
        sections += [*_unweighted(record, record.log, plan, suffix), _correlation(record, suffix)]
    return sections


def _unweighted(record: RunRecord, log: Series, plan: DistillConfig | None, suffix: str) -> list[Section]:
    """Plot the distillation terms as the method's formula gives them, where that can be told."""
    factors = term_factors(plan, record.balance) if plan else {}
    known = {name: factors[name.partition("/")[0]] for name in record.terms if name.partition("/")[0] in factors}
    if not known:
        return []
    title = f"Losses without weights{suffix}"
    chosen = "; ".join(_weights_in_words(name, factor) for name, factor in factors.items())
    notes = [f"The distillation terms above are multiplied by the loss's weight and the balance: {chosen}."]
    if all(value == 1 for factor in known.values() for value in factor.values()):
        return [Section(title, [*notes, "So the curves above are the terms without weights, too."])]
    balanced = plan is not None and plan.balance is not None
    if balanced:
        notes.append(f"The first {MEASURED_STEPS} steps of a stage are left out: the balance is measured in them.")
    raw = {name: divided(log, name, factor, balanced=balanced) for name, factor in known.items()}
    series = replace(log, columns={**log.columns, **raw})
    return [Section(title, notes, figures=_figures(series, list(known), " without its weight"))]


def divided(log: Series, name: str, factors: Mapping[int, float], *, balanced: bool) -> Column:
    """Take a factor of each stage out of a column; NaN where it is not known.

    Args:
        log: of the run.
        name: of the column.
        factors: stage, from 1 -> factor.
        balanced: the first `MEASURED_STEPS` steps of each stage had other factors.
    """
    divisors = np.array([factors.get(int(stage), np.nan) for stage in log.stages])
    if balanced:
        for stage in np.unique(log.stages):
            divisors[np.flatnonzero(log.stages == stage)[:MEASURED_STEPS]] = np.nan
    column: Column = log.columns[name] / divisors
    return column


def _correlation(record: RunRecord, suffix: str) -> Section:
    title = f"Correlation with the teacher{suffix}"
    if record.log is None or not record.correlations:
        return Section(title, ["The correlation with the teacher was not logged."])
    lines = {name.replace("pearson/", ""): curve(record.log, name) for name in record.correlations}
    note = (
        "Pearson correlation of the aligned, unmasked student features with the teacher's, per level; 1 is perfect. "
        "Where the loss falls but this does not rise, the training-only layers learn instead of the student."
    )
    return Section(title, [note], figures=[curves("", lines, "step", stage_starts(record.log))])


def _figures(log: Series, terms: Sequence[str], suffix: str) -> list[Figure]:
    """Plot each term, its levels as lines; one without a single value is left out."""
    marks = stage_starts(log)
    return [
        curves(
            (group if len(names) > 1 else names[0]) + suffix,
            {name.removeprefix(f"{group}/"): curve(log, name) for name in names},
            "step",
            marks,
            digits=6 if group == "lr" else 3,
        )
        for group, names in _grouped([name for name in terms if np.isfinite(log.columns[name]).any()]).items()
    ]


def _grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """``mask/p3``, ``mask/p4`` -> one group ``mask``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return groups


def _weights_in_words(name: str, factors: Mapping[int, float]) -> str:
    told = {stage: f"{factor:.4g}" for stage, factor in factors.items()}
    if len(set(told.values())) == 1:
        return f"{name} by {next(iter(told.values()))}"
    return f"{name} by {', '.join(f'{factor} (stage {stage})' for stage, factor in told.items())}"


def _percent_curve(epochs: Series, name: str) -> tuple[Column, Column]:
    measured = np.isfinite(epochs.columns[name])
    return epochs.columns["epoch"][measured] + 1, 100 * epochs.columns[name][measured]


def _stage_epochs(epochs: Series) -> tuple[float, ...]:
    """Epochs trained when a stage after the first begins, halfway between two evaluations."""
    changes = np.flatnonzero(np.diff(epochs.stages)) + 1
    return tuple(float(epochs.columns["epoch"][change] + 0.5) for change in changes)
