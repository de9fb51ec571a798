"""Sections of a comparison report: table, gains, curves, classes and object sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.results import PairResults, Summary
from dfmsd.errors import DfmsdError
from dfmsd.reporting.page import Figure, Section, Table
from dfmsd.reporting.plots import bars, curves, escape_label
from dfmsd.reporting.records import Column, RunRecord, read_run
from dfmsd.reporting.results import SIZES, describe_gain, difference, percent
from dfmsd.runfolder import RunFolder

SEEDS = "one seed"
MAX_CLASSES = 20
"""Number of classes with bars."""


def result_sections(results: PairResults, table: Table, notes: Sequence[str], folder: Path) -> list[Section]:
    """Build the sections of a pair's report.

    Args:
        results: of the pair.
        table: of its methods.
        notes: on how to read the table.
        folder: of the page; links to the reports of the runs are relative to it.
    """
    sections = [Section("Methods", notes, table, lead=summarize(results))]
    if results.failed:
        sections.append(Section("Warnings", [f"{run} failed: {reason}" for run, reason in results.failed.items()]))
    gains = [summary for summary in results.summaries() if summary.difference is not None]
    if gains:
        note = "Bars show the mean over the seeds with its interval; each dot is one seed."
        sections.append(Section("Gain over the baseline", [note], figures=[gains_figure(gains)]))
    records = _records(results)
    lines = {method: _mean_curve(runs) for method, runs in records.items()}
    lines = {method: line for method, line in lines.items() if len(line[0]) > 1}
    if lines:
        note = "Mean over the seeds, for epochs that all of them evaluated."
        figure = curves("AP in percent", lines, "Epochs trained", digits=1)
        sections.append(Section("AP during training", [note], figures=[figure]))
    return [*sections, *_classes(records), *_sizes(records), *_runs(results, folder)]


def summarize(results: PairResults) -> str:
    """State the best method, its gain, and the methods that beat the baseline with every seed.

    Args:
        results: of one pair.
    """
    compared = [one for one in results.summaries() if one.difference is not None]
    if not compared:
        return ""
    best = max(compared, key=lambda one: one.mean)
    seeds = "seed" if best.seeds == 1 else "seeds"
    gain = describe_gain(100 * (best.difference or 0.0), "the baseline")
    consistent = [one.method for one in compared if min(one.differences.values()) > 0]
    ap = results.best_teacher
    teacher = "" if ap is None else f"The best teacher reaches {100 * ap:.1f}. "
    return (
        f"The best method is {best.method} with {100 * best.mean:.1f} AP, {gain} ({best.seeds} {seeds}). "
        f"{teacher}Better than the baseline with every seed: {', '.join(consistent) or 'none'}."
    )


def gains_figure(gains: Sequence[Summary]) -> Figure:
    """Plot the paired gains of each method.

    Args:
        gains: summaries with a difference.
    """
    means = {summary.method: 100 * (summary.difference or 0.0) for summary in gains}
    unit = "AP gain over the baseline with the same seed"
    figure = bars("Gain over the baseline", {"mean": means}, unit, signed=True)
    known = [summary.interval or (summary.difference or 0.0,) * 2 for summary in gains]
    error_bars = {
        "type": "data",
        "symmetric": False,
        "array": [round(100 * high - mean, 4) for (_, high), mean in zip(known, means.values(), strict=True)],
        "arrayminus": [round(mean - 100 * low, 4) for (low, _), mean in zip(known, means.values(), strict=True)],
    }
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": SEEDS,
        "y": [escape_label(summary.method) for summary in gains for _ in summary.differences],
        "x": [round(100 * value, 4) for summary in gains for value in summary.differences.values()],
        "text": [f"seed {seed}" for summary in gains for seed in summary.differences],
        "hovertemplate": "%{y}, %{text}: %{x:+.1f}<extra></extra>",
        "marker": {"size": 7},
    }
    layout = {**figure.layout, "showlegend": True}
    return replace(figure, traces=[{**figure.traces[0], "error_x": error_bars}, dots], layout=layout)


def _records(results: PairResults) -> dict[str, list[RunRecord]]:
    """Read the runs of each method, best first, skipping missing and damaged folders.

    The baseline comes last, so that a method has the same color in plots with and without it.
    """
    methods = sorted((summary.method for summary in results.summaries()), key=lambda method: method == BASELINE)
    folders: dict[str, list[RunRecord]] = {method: [] for method in methods}
    for row in results.rows:
        try:
            folders[row.method].append(read_run(row.run, log=False))
        except DfmsdError:  # moved or damaged in the meantime
            continue
    return {method: records for method, records in folders.items() if records}


def _mean_curve(records: Sequence[RunRecord]) -> tuple[Column, Column]:
    tables = [record.epochs.columns for record in records if record.epochs]
    if len(tables) < len(records):
        return np.empty(0), np.empty(0)
    values = [dict(zip(table["epoch"], table["AP"], strict=True)) for table in tables]
    epochs = sorted(set.intersection(*(set(known) for known in values)))
    means = [100 * float(np.mean([known[epoch] for known in values])) for epoch in epochs]
    return np.array(epochs) + 1, np.array(means)


def _runs(results: PairResults, folder: Path) -> list[Section]:
    """Link the existing reports of the runs."""
    pages = {f"{row.method}, seed {row.seed}": RunFolder(Path(row.run)).report_file for row in results.rows}
    links = [
        (name, quote(Path(os.path.relpath(page, folder)).as_posix())) for name, page in pages.items() if page.is_file()
    ]
    note = "Each run has its own report with losses, correlation, levels, config and environment."
    return [Section("Runs", [note], links=links)] if links else []


def _sizes(records: Mapping[str, Sequence[RunRecord]]) -> list[Section]:
    values = {
        method: {label: _mean([(run.metrics or {}).get(key) for run in runs]) for key, label in SIZES.items()}
        for method, runs in records.items()
    }
    return _groups("Object sizes", "object size", values, ["Mean over the seeds."])


def _classes(records: Mapping[str, Sequence[RunRecord]]) -> list[Section]:
    tables = {method: [(run.metrics or {}).get("per_class") or {} for run in runs] for method, runs in records.items()}
    names = dict.fromkeys(name for runs in tables.values() for table in runs for name in table)
    values = {
        method: {name: _mean([table.get(name) for table in runs]) for name in names} for method, runs in tables.items()
    }
    spread = {name: _spread([method[name] for method in values.values()]) for name in names}
    shown = sorted(names, key=lambda name: spread[name], reverse=True)[:MAX_CLASSES]
    notes = ["Mean over the seeds."]
    if len(shown) < len(names):
        notes.append(f"The {len(shown)} of {len(names)} classes on which the methods differ most.")
    kept = {method: {name: aps[name] for name in names if name in shown} for method, aps in values.items()}
    return _groups("Classes", "class", kept, notes)


def _groups(
    title: str, kind: str, values: Mapping[str, Mapping[str, float | None]], notes: Sequence[str]
) -> list[Section]:
    """Compare the methods on groups of objects, and with the baseline if it is known."""
    known = {method: aps for method, aps in values.items() if any(value is not None for value in aps.values())}
    if not known:
        return []
    figures = [bars(f"AP by {kind}", known, "AP in percent")]
    if BASELINE in known and len(known) > 1:
        before = known[BASELINE]
        gains = {method: difference(aps, before) for method, aps in known.items() if method != BASELINE}
        figures.append(bars(f"AP gain over the baseline by {kind}", gains, "Difference in AP", signed=True))
    return [Section(title, notes, figures=figures)]


def _spread(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else -1.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in map(percent, values) if value is not None]
    return sum(known) / len(known) if known else None
