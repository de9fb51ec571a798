"""Rows of the models in a report: the run itself, its baseline and its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dfmsd.engine.config import DistillConfig
from dfmsd.reporting.analysis import Analysis
from dfmsd.reporting.page import Section, Table
from dfmsd.reporting.records import RunRecord, read_run
from dfmsd.reporting.results import ModelRow, format_percent, model_row, percent
from dfmsd.reporting.runconfig import paired_levels, run_config, same_images, teacher_folder
from dfmsd.types import LevelSpec

ONE_SEED = (
    "Each result comes from a single run. The seed alone changes AP: repeat with several seeds before trusting a small "
    "gain."
)


def teacher_row(
    name: str, config: DistillConfig | None, analysis: Analysis | None
) -> tuple[ModelRow, Sequence[LevelSpec]]:
    """Return the row and the levels of a teacher.

    The AP in its run folder counts only if it was measured on the same images.

    Args:
        name: its reference.
        config: of the student's run.
        analysis: of the student's run.
    """
    folder = teacher_folder(name)
    record = read_run(folder) if folder else None
    row = model_row(name, record) if record else ModelRow(name)
    teacher_config = run_config(record) if record else None
    comparable = same_images(teacher_config, config, teaches=True)
    row = replace(row, metrics=row.metrics if comparable else None)
    levels = analysis.levels.get(name, ()) if analysis else record.levels if record else ()
    return add_measurements(row, name, analysis), levels


def add_measurements(row: ModelRow, key: str, analysis: Analysis | None) -> ModelRow:
    """Add measured costs, and measured metrics if the run folder has none, which cover all images.

    Args:
        row: to complete.
        key: name of the detector in the analysis.
        analysis: None adds nothing.
    """
    if analysis is None:
        return row
    cost = analysis.costs.get(key)
    if cost is not None:
        row = replace(row, flops=cost.flops, latency=cost.latency)
    return row if row.metrics else replace(row, metrics=analysis.metrics.get(key))


def measurement_notes(rows: Sequence[ModelRow], analysis: Analysis | None) -> list[str]:
    """Explain how costs and metrics of an analysis were measured."""
    if analysis is None:
        return []
    notes = [
        "GFLOPs and CPU ms: detection in one image, 2 FLOPs per multiply-add, median time on this machine with the "
        "detectors measured in turns."
    ]
    measured = [row.name for row in rows if any(row.metrics is metrics for metrics in analysis.metrics.values())]
    if measured and not analysis.whole:
        notes.append(f"AP of {', '.join(measured)} covers only the first {analysis.images} validation images.")
    return notes


def difference_notes(baseline: RunRecord, distilled: RunRecord) -> list[str]:
    """State the limits of a comparison of two runs."""
    if any((run.metrics or {}).get("AP") is None for run in (baseline, distilled)):
        return []
    notes = [ONE_SEED]
    if baseline.trained_epochs != distilled.trained_epochs:
        notes.append("The two runs were trained for different numbers of epochs, so the comparison is not fair.")
    return notes


def delivery_notes(record: RunRecord) -> list[str]:
    """State both APs of a run that chose between its last weights and their average."""
    if record.average_metrics is None or record.metrics is None or record.epochs is None:
        return []
    last, average = percent(float(record.epochs.columns["AP"][-1])), percent(record.average_metrics["AP"])
    chosen = "their average was" if average is not None and (last is None or average > last) else "they were"
    return [
        f"The last weights reach {format_percent(last)} AP, their average {format_percent(average)}: {chosen} "
        "delivered, a choice made on the images that AP is measured on."
    ]


def levels_sections(
    config: DistillConfig | None, record: RunRecord, levels: Mapping[str, Sequence[LevelSpec]], suffix: str = ""
) -> list[Section]:
    """Show which student level learns from which teacher level.

    Args:
        config: of the run.
        record: of the run.
        levels: teacher -> pyramid levels.
        suffix: appended to the section title.
    """
    pairs = paired_levels(record, config, record.levels, levels) if config and record.levels else []
    if not pairs:
        return []
    rows = [
        (
            f"{row.stage}: {row.teacher}",
            *(f"{level.name} /{level.stride:.3g}, {level.channels} channels" for level in row.pair),
            row.alignment,
        )
        for row in pairs
    ]
    return [Section(f"Levels{suffix}", (), Table(("stage: teacher", "student", "teacher", "alignment"), rows))]


def run_name(run: Path) -> str:
    """Return the name of a run; runs of a comparison include the method."""
    run = run.resolve()
    return f"{run.parent.name}/{run.name}" if run.name.startswith("seed-") else run.name
