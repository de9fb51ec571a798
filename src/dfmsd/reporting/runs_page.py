"""Report about several runs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dfmsd.errors import DfmsdError
from dfmsd.reporting.analysis import Analysis
from dfmsd.reporting.caveats import run_warnings
from dfmsd.reporting.models import add_measurements, difference_notes, levels_sections, measurement_notes, teacher_row
from dfmsd.reporting.page import Section, write_page
from dfmsd.reporting.records import RunRecord, read_run
from dfmsd.reporting.results import AP_NOTE, METRICS, ModelRow, classes_section, model_row, results_section
from dfmsd.reporting.runconfig import run_config, teacher_folder, teacher_references
from dfmsd.reporting.stages import stages_sections
from dfmsd.reporting.summary import summarize
from dfmsd.reporting.training import precision_section, training_sections
from dfmsd.types import LevelSpec


def comparison_report(path: str | Path, runs: Mapping[str, str | Path], analysis: Analysis | None = None) -> Path:
    """Write one page about several runs.

    Args:
        path: HTML file to write.
        runs: displayed name -> run folder, in the order of the table. If ``baseline`` and ``distilled`` are among
            them, the page also shows their difference.
        analysis: of ``distilled``, ``baseline`` and the runs of its teachers.

    Returns:
        ``path``.

    Raises:
        DfmsdError: there is no run, a folder does not exist, or a file in it is damaged.
    """
    if not runs:
        raise DfmsdError("no runs to compare; pass at least one run folder")
    records = {name: read_run(folder) for name, folder in runs.items()}
    teachers = _teacher_names(records)
    keys = {"distilled": "student", "baseline": "baseline", **teachers}
    rows = [add_measurements(model_row(name, record), keys.get(name, ""), analysis) for name, record in records.items()]
    notes = [AP_NOTE, *measurement_notes(rows, analysis)]
    notes += [f"{name} has no metrics.json yet." for name, run in records.items() if run.metrics is None]
    has_pair = {"baseline", "distilled"} <= records.keys()
    if has_pair:
        notes += difference_notes(records["baseline"], records["distilled"])
    sections = [replace(results_section(rows, notes), lead=_lead(rows, teachers))]
    warnings = [f"{name}: {text}" for name, run in records.items() if run.distills for text in _warnings(run)]
    warnings += analysis.notes if analysis else []
    if warnings:
        sections.append(Section("Warnings", warnings))
    if has_pair and records["distilled"].metrics is not None:
        sections.append(classes_section(rows, "distilled", "baseline"))
    colored = dict.fromkeys(name for name in ("distilled", "baseline", *records) if name in records)
    sections.append(precision_section({name: records[name] for name in colored}, METRICS[:1]))
    for name, record in records.items():
        if record.distills:
            config, suffix = run_config(record), f" ({name})"
            sections += stages_sections(config, record, suffix)
            sections += training_sections(record, config, suffix)
            sections += levels_sections(config, record, _known_levels(teacher_references(config), analysis), suffix)
    return write_page(Path(path), "Comparison of runs", [*sections, *(analysis.sections if analysis else [])])


def _lead(rows: Sequence[ModelRow], teachers: Container[str]) -> str:
    """Summarize the run ``distilled``, if there is one."""
    runs = {row.name: row for row in rows}
    if "distilled" not in runs:
        return ""
    return summarize(runs["distilled"], runs.get("baseline"), [row for name, row in runs.items() if name in teachers])


def _warnings(record: RunRecord) -> list[str]:
    config = run_config(record)
    return run_warnings(record, config, [teacher_row(name, config, None)[0] for name in teacher_references(config)])


def _teacher_names(records: Mapping[str, RunRecord]) -> dict[str, str]:
    """Map the runs that are teachers of other runs to their references."""
    references = {name for record in records.values() for name in teacher_references(run_config(record))}
    folders = {folder.resolve(): name for name in references if (folder := teacher_folder(name))}
    resolved = {name: record.folder.resolve() for name, record in records.items()}
    return {name: folders[folder] for name, folder in resolved.items() if folder in folders}


def _known_levels(references: Sequence[str], analysis: Analysis | None) -> dict[str, Sequence[LevelSpec]]:
    known = {name: teacher_row(name, None, analysis)[1] for name in references}
    return {name: levels for name, levels in known.items() if levels}
