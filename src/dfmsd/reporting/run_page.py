"""Report about one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from dfmsd.reporting.analysis import Analysis
from dfmsd.reporting.caveats import baseline_warnings, run_warnings
from dfmsd.reporting.models import (
    add_measurements,
    delivery_notes,
    difference_notes,
    levels_sections,
    measurement_notes,
    run_name,
    teacher_row,
)
from dfmsd.reporting.page import Section, write_page
from dfmsd.reporting.records import RunRecord, read_run
from dfmsd.reporting.results import AP_NOTE, METRICS, ModelRow, classes_section, model_row, results_section
from dfmsd.reporting.runconfig import run_config, teacher_references
from dfmsd.reporting.stages import stages_sections
from dfmsd.reporting.summary import summarize
from dfmsd.reporting.training import precision_section, training_sections
from dfmsd.runfolder import RunFolder

NO_BASELINE = (
    "Compare with a baseline to see what the distillation gained: `dfmsd distill` with --no-distill trains one, and "
    "`dfmsd report RUN --baseline BASELINE` shows both."
)


def run_report(
    run: str | Path,
    *,
    baseline: str | Path | None = None,
    teachers: Sequence[str] = (),
    analysis: Analysis | None = None,
) -> Path:
    """Write ``report.html`` into a run folder.

    The page names everything the folder lacks.

    Args:
        run: run folder.
        baseline: run folder to compare with.
        teachers: references; by default those of the run's config.
        analysis: of the run's detectors; without it the page shows only what the folders contain.

    Returns:
        Path of the page.

    Raises:
        DfmsdError: the folder does not exist, or one of its files is damaged.
    """
    record = read_run(run)
    config = run_config(record)
    references = list(teachers) or teacher_references(config)
    teacher_rows = [teacher_row(name, config, analysis) for name in references]
    baseline_record = read_run(baseline) if baseline else None
    known = [row for row, _ in teacher_rows if row.metrics or row.parameters or row.flops]
    student_row = add_measurements(model_row(run_name(record.folder), record), "student", analysis)
    baseline_row = None
    if baseline_record is not None:
        baseline_row = add_measurements(model_row("baseline", baseline_record), "baseline", analysis)
    rows = [*known, *([baseline_row] if baseline_row else []), student_row]
    warnings = [*(analysis.notes if analysis else []), *run_warnings(record, config, [row for row, _ in teacher_rows])]
    if baseline_record is not None:
        warnings += baseline_warnings(record, baseline_record, config, run_config(baseline_record))
    levels = {name: levels for name, (_, levels) in zip(references, teacher_rows, strict=True) if levels}
    lead = summarize(student_row, baseline_row, known) if record.distills else ""
    sections = [
        replace(_results(record, rows, baseline_record, analysis), lead=lead),
        *([Section("Warnings", warnings)] if warnings else []),
        classes_section(rows, student_row.name, "baseline"),
        *stages_sections(config, record),
        _precision(record, baseline_record),
        *training_sections(record, config, ""),
        *levels_sections(config, record, levels),
        *(analysis.sections if analysis else []),
        _config(record),
        _environment(record),
    ]
    return write_page(RunFolder(record.folder).report_file, f"Run {student_row.name}", sections)


def _results(
    record: RunRecord, rows: Sequence[ModelRow], baseline: RunRecord | None, analysis: Analysis | None
) -> Section:
    if record.metrics is None:
        missing = "There is no metrics.json: the run has not finished, or was not evaluated."
        return Section("Results", [missing]) if len(rows) == 1 else results_section(rows, [missing, AP_NOTE])
    notes = [AP_NOTE, *delivery_notes(record), *measurement_notes(rows, analysis)]
    if baseline is not None:
        notes += difference_notes(baseline, record)
    elif record.distills:
        notes.append(NO_BASELINE)
    return results_section(rows, notes)


def _precision(record: RunRecord, baseline: RunRecord | None) -> Section:
    name = run_name(record.folder)
    if baseline is None:
        return precision_section({name: record}, METRICS[:3])
    return precision_section({name: record, "baseline": baseline}, METRICS[:1])


def _config(record: RunRecord) -> Section:
    notes = [] if record.config else ["There is no config.yaml."]
    return Section("Config", notes, text=record.config)


def _environment(record: RunRecord) -> Section:
    if not record.environment:
        return Section("Environment", ["There is no environment.json, so versions and machine are unknown."])
    return Section("Environment", text=yaml.safe_dump(dict(record.environment), sort_keys=False, allow_unicode=True))
