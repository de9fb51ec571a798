"""What the two reports say: about one run, and about several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from dfmsd.errors import DfmsdError
from dfmsd.report.page import Section, Table, write_report
from dfmsd.report.plots import MAX_POINTS, Panel, curve, draw, stage_starts
from dfmsd.report.records import Column, RunRecord, Series, read_run

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_PERCENT = "AP is COCO's average precision on the validation images, in percent."


def run_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder; gives its path.

    What the folder lacks is named in the page.

    Raises:
        DfmsdError: there is no such folder, or a file in it is damaged.
    """
    record = read_run(run)
    curves = (_average_precision({run.name: record}, METRICS[:3]), *_training_sections(record, ""))
    sections = (_summary(record), _per_class(record), *curves, _config(record), _environment(record))
    return write_report(run / "report.html", f"Run {run.name}", sections)


def comparison_report(path: Path, runs: Mapping[str, Path]) -> Path:
    """Write one page about several runs; gives its path.

    Args:
        path: the HTML file to write.
        runs: name to be shown -> run folder, in the order of the table. Where there is a ``baseline`` and a
            ``distilled``, their difference is told as well.

    Raises:
        DfmsdError: no run is given, one of the folders does not exist, or a file in it is damaged.
    """
    if not runs:
        raise DfmsdError("no run to compare: give at least one run folder")
    records = {name: read_run(folder) for name, folder in runs.items()}
    sections = [_comparison(records), _average_precision(records, METRICS[:1])]
    for name, record in records.items():
        if record.distils:
            sections += _training_sections(record, f" ({name})")
    return write_report(path, "Comparison of runs", sections)


def _comparison(records: Mapping[str, RunRecord]) -> Section:
    rows = [
        (name, _metric(record, "AP"), _metric(record, "AP50"), _count(record.parameters), _count(record.trained_epochs))
        for name, record in records.items()
    ]
    notes = [_PERCENT, *(f"{name} has no metrics.json yet." for name, run in records.items() if run.metrics is None)]
    if {"baseline", "distilled"} <= records.keys():
        notes += _verdict(records["baseline"], records["distilled"])
    return Section("Result", notes, Table(("run", "AP", "AP50", "parameters", "epochs"), rows))


def _verdict(baseline: RunRecord, distilled: RunRecord) -> list[str]:
    before, after = ((run.metrics or {}).get("AP") for run in (baseline, distilled))
    if before is None or after is None:
        return []
    gain = 100 * (after - before)
    notes = [
        f"The distilled student has {gain:+.1f} AP against the baseline. This is one run each: the seed alone moves "
        "AP, so repeat with several seeds before you believe a small difference."
    ]
    if baseline.trained_epochs != distilled.trained_epochs:
        notes.append("The two were not trained for the same number of epochs: the comparison is not fair.")
    return notes


def _summary(record: RunRecord) -> Section:
    if record.metrics is None:
        return Section("Result", ["There is no metrics.json: the run is not finished, or was not evaluated."])
    metrics = record.metrics
    facts = [(name, _percent(metrics[name])) for name in METRICS if name in metrics]
    facts += [("parameters", _count(record.parameters)), ("epochs", _count(record.trained_epochs))]
    return Section("Result", [_PERCENT], Table([name for name, _ in facts], [[value for _, value in facts]]))


def _per_class(record: RunRecord) -> Section:
    per_class = (record.metrics or {}).get("per_class")
    if not per_class:
        return Section("Classes", ["There are no metrics per class."])
    rows = [(name, _percent(value)) for name, value in per_class.items()]
    absent = ["A dash: the validation images hold no object of this class."] if any(r[1] == "–" for r in rows) else []
    return Section("Classes", absent, Table(("class", "AP"), rows))


def _average_precision(records: Mapping[str, RunRecord], columns: Sequence[str]) -> Section:
    """Curves of AP: several columns of one run, or one column of several runs."""
    notes = [
        f"{n} has no epochs.csv: nothing was evaluated during training." for n, r in records.items() if not r.epochs
    ]
    lines = {
        name if len(records) > 1 else column: _percent_curve(record.epochs, column)
        for name, record in records.items()
        for column in columns
        if record.epochs and column in record.epochs.columns
    }
    figure = draw([Panel("", lines, "epochs trained")], columns=1) if lines else None
    return Section("AP during training", notes, figure=figure)


def _percent_curve(epochs: Series, name: str) -> tuple[Column, Column]:
    measured = np.isfinite(epochs.columns[name])
    return epochs.columns["epoch"][measured] + 1, 100 * epochs.columns[name][measured]


def _training_sections(record: RunRecord, suffix: str) -> list[Section]:
    """Losses and, for a distillation, the correlation with the teacher."""
    if record.log is None:
        return [Section(f"Losses{suffix}", ["There is no log.csv with a step in it."])]
    marks = stage_starts(record.log)
    notes = [
        f"{name} was not finite in {count} of {len(record.log.stages)} steps."
        for name, count in record.log.not_finite.items()
    ]
    if len(record.log.stages) > MAX_POINTS:
        notes.append(f"Each point is the mean of neighbouring steps, at most {MAX_POINTS} points a stage.")
    if marks:
        notes.append("A dashed vertical line marks the beginning of a stage.")
    panels = [
        Panel(
            group if len(names) > 1 else names[0],
            {name.removeprefix(f"{group}/"): curve(record.log, name) for name in names},
            "step",
            marks=marks,
        )
        for group, names in _grouped(record.terms).items()
    ]
    sections = [Section(f"Losses{suffix}", notes, figure=draw(panels))] if panels else []
    if record.distils:
        sections.append(_correlation(record, suffix, marks))
    return sections


def _correlation(record: RunRecord, suffix: str, marks: list[float]) -> Section:
    title = f"Correlation with the teacher{suffix}"
    if record.log is None or not record.correlations:
        return Section(title, ["The correlation with the teacher was not logged."])
    lines = {name.replace("pearson/", ""): curve(record.log, name) for name in record.correlations}
    note = (
        "Pearson correlation of the aligned, unmasked student features with the teacher's, per level; 1 is perfect. "
        "Where the loss falls but this does not rise, the training-only layers learn instead of the student."
    )
    return Section(title, [note], figure=draw([Panel("", lines, "step", marks=marks)], columns=1))


def _grouped(names: list[str]) -> dict[str, list[str]]:
    """``mask/p3``, ``mask/p4`` -> one group ``mask``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return groups


def _config(record: RunRecord) -> Section:
    notes = [] if record.config else ["There is no config.yaml."]
    return Section("Config", notes, text=record.config)


def _environment(record: RunRecord) -> Section:
    if not record.environment:
        return Section("Environment", ["There is no environment.json: versions and machine are unknown."])
    return Section("Environment", text=yaml.safe_dump(dict(record.environment), sort_keys=False, allow_unicode=True))


def _metric(record: RunRecord, name: str) -> str:
    return _percent((record.metrics or {}).get(name))


def _percent(value: float | None) -> str:
    """COCO's -1 (nothing to measure), a null and NaN become a dash."""
    return "–" if value is None or math.isnan(value) or value < 0 else f"{100 * value:.1f}"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
