"""Report sections on training: AP, losses and correlation with the teacher over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dfmsd.engine.config import DistillConfig
from dfmsd.reporting.page import Figure, Section
from dfmsd.reporting.plots import MAX_POINTS, curve, curves, first_steps
from dfmsd.reporting.records import Column, RunRecord, Series
from dfmsd.reporting.runconfig import TermWeight, term_weights

TERMS = (
    "loss is the total training loss, task the detector's own part of it, lr the learning rate. The other terms belong "
    "to the distillation and include their weights, with one line per level of the student's pyramid."
)


def precision_section(records: Mapping[str, RunRecord], columns: Sequence[str]) -> Section:
    """Plot AP per epoch: several columns of one run, or one column of several runs."""
    notes = [
        f"{n} has no epochs.csv: it was not evaluated during training." for n, r in records.items() if not r.epochs
    ]
    lines = {
        name if len(records) > 1 else column: _percent_curve(record.epochs, column)
        for name, record in records.items()
        for column in columns
        if record.epochs and column in record.epochs.columns
    }
    lines = {name: line for name, line in lines.items() if len(line[0])}
    if lines and max(len(x) for x, _ in lines.values()) == 1:
        notes.append("AP was measured only once, so there is no curve.")
        lines = {}
    boundaries = {_stage_epochs(record.epochs) for record in records.values() if record.epochs} - {()}
    # runs with different stages have no common boundary
    starts = next(iter(boundaries)) if len(boundaries) == 1 else ()
    figures = [curves("AP in percent", lines, "Epochs trained", starts, digits=1)] if lines else []
    return Section("AP during training", notes, figures=figures)


def training_sections(record: RunRecord, config: DistillConfig | None, suffix: str) -> list[Section]:
    """Plot the losses and, for a distillation, the correlation with the teacher.

    Args:
        record: of the run.
        config: of the run, if it can be read.
        suffix: appended to the section titles.
    """
    if record.log is None:
        return [Section(f"Losses{suffix}", ["There is no log.csv with at least one step."])]
    notes = [
        f"{name} was not finite in {count} of {len(record.log.stages)} steps."
        for name, count in record.log.not_finite.items()
    ]
    if len(record.log.stages) > MAX_POINTS:
        notes.append(f"Each point is the mean over adjacent steps, with at most {MAX_POINTS} points per stage.")
    if first_steps(record.log):
        notes.append("Dashed vertical lines mark the start of a stage.")
    if record.distills:
        notes.append(TERMS)
    figures = _figures(record.log, record.terms, "")
    sections = [Section(f"Losses{suffix}", notes, figures=figures)] if figures else []
    if record.distills:
        sections += [*_unweighted(record, record.log, config, suffix), _correlation(record, suffix)]
    return sections


def _unweighted(record: RunRecord, log: Series, config: DistillConfig | None, suffix: str) -> list[Section]:
    """Plot the distillation terms without weight and balance, if both are known."""
    weights = term_weights(config) if config else {}
    known = {name: weights[name.partition("/")[0]] for name in record.terms if name.partition("/")[0] in weights}
    if not known:
        return []
    title = f"Losses without weights{suffix}"
    chosen = "; ".join(_describe_weight(name, log, weight) for name, weight in weights.items())
    notes = [f"The distillation terms above include the loss weight and the balance: {chosen}."]
    if all(weight == (1, None) for stages in known.values() for weight in stages.values()):
        return [Section(title, [*notes, "The curves above therefore also show the terms without weights."])]
    raw = {name: without_weights(log, name, weight) for name, weight in known.items()}
    series = replace(log, columns={**log.columns, **raw})
    return [Section(title, notes, figures=_figures(series, list(known), " without weight"))]


def without_weights(log: Series, name: str, weights: Mapping[int, TermWeight]) -> Column:
    """Divide a column by its weight and balance in each stage; NaN where they are unknown.

    Args:
        log: of the run.
        name: column to divide.
        weights: stage, from 1 -> weight.
    """
    factors = np.full(len(log.stages), np.nan)
    for stage in weights:
        factors[log.stages == stage] = _factors(log, stage, weights[stage])
    column: Column = log.columns[name] / factors
    return column


def _factors(log: Series, stage: int, weight: TermWeight) -> Column:
    """Return the factor of a term in each step of a stage."""
    rows = log.stages == stage
    nothing = np.full(len(rows), np.nan)
    balance = np.ones(len(rows)) if weight.balance is None else log.columns.get(weight.balance, nothing)
    factors: Column = weight.weight * balance[rows]
    return factors


def _correlation(record: RunRecord, suffix: str) -> Section:
    title = f"Correlation with the teacher{suffix}"
    if record.log is None or not record.correlations:
        return Section(title, ["The correlation with the teacher was not logged."])
    lines = {name.replace("pearson/", ""): curve(record.log, name) for name in record.correlations}
    note = (
        "Pearson correlation of the aligned, unmasked student features with the teacher's, per level; 1 is perfect. "
        "If the loss falls while the correlation stays flat, the training-only layers learn instead of the student."
    )
    return Section(title, [note], figures=[curves("", lines, "Step", first_steps(record.log))])


def _figures(log: Series, terms: Sequence[str], suffix: str) -> list[Figure]:
    """Plot each term with one line per level; terms without values are left out."""
    starts = first_steps(log)
    return [
        curves(
            (group if len(names) > 1 else names[0]) + suffix,
            {name.removeprefix(f"{group}/"): curve(log, name) for name in names},
            "Step",
            starts,
            digits=6 if group == "lr" else 3,
        )
        for group, names in _group_levels([name for name in terms if np.isfinite(log.columns[name]).any()]).items()
    ]


def _group_levels(names: Sequence[str]) -> dict[str, list[str]]:
    """Group columns by term: ``mask/p3`` and ``mask/p4`` belong to ``mask``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return groups


def _describe_weight(name: str, log: Series, weights: Mapping[int, TermWeight]) -> str:
    """Describe the weight of a term, and the range of a factor that changes during a stage."""
    texts = {}
    for stage, weight in weights.items():
        factors = _factors(log, stage, weight)
        known = factors[np.isfinite(factors)]
        low, high = (f"{value:.4g}" for value in (known.min(), known.max())) if len(known) else ("?", "?")
        texts[stage] = low if low == high else f"{low} to {high}"
    if len(set(texts.values())) == 1:
        return f"{name} × {next(iter(texts.values()))}"
    return f"{name} × {', '.join(f'{text} (stage {stage})' for stage, text in texts.items())}"


def _percent_curve(epochs: Series, name: str) -> tuple[Column, Column]:
    measured = np.isfinite(epochs.columns[name])
    return epochs.columns["epoch"][measured] + 1, 100 * epochs.columns[name][measured]


def _stage_epochs(epochs: Series) -> tuple[float, ...]:
    """Return where stages after the first start, in epochs, halfway between two evaluations."""
    changes = np.flatnonzero(np.diff(epochs.stages)) + 1
    return tuple(float(epochs.columns["epoch"][change] + 0.5) for change in changes)
