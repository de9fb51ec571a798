"""What the reports say: about one run, and about several side by side."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.reporting.page import Section, Table, write_report
from dfmsd.reporting.plan import folder_of, paired_levels, read_plan, teachers_of
from dfmsd.reporting.records import RunRecord, read_run
from dfmsd.reporting.scores import METRICS, PERCENT, Contender, classes_section, contender, headline
from dfmsd.reporting.training import precision_section, training_sections
from dfmsd.reporting.verdict import verdict
from dfmsd.reporting.warnings import against_baseline, warnings_of
from dfmsd.types import LevelSpec

if TYPE_CHECKING:
    from dfmsd.reporting.examine import Examination

ONE_SEED = (
    "This is one run each: the seed alone moves AP, so repeat with several seeds before you believe a small gain."
)
NO_BASELINE = (
    "What the distillation gave is told beside a baseline: `dfmsd distill` with --no-distill makes one, and "
    "`dfmsd report RUN --baseline BASELINE` puts the two side by side."
)


def run_report(
    run: Path, *, baseline: Path | None = None, teachers: Sequence[str] = (), found: Examination | None = None
) -> Path:
    """Write ``report.html`` into a run folder; gives its path.

    What the folder lacks is named in the page.

    Args:
        run: the folder.
        baseline: folder of the run that it is compared with.
        teachers: references; none takes those of the run's config.
        found: what `dfmsd.reporting.examine` saw; without it the page tells what the folders hold.

    Raises:
        DfmsdError: there is no such folder, or a file in it is damaged.
    """
    record = read_run(run)
    plan = read_plan(record)
    references = list(teachers) or teachers_of(plan)
    taught = [_teacher(name, plan, found) for name in references]
    before = read_run(baseline) if baseline else None
    known = [one for one, _ in taught if one.metrics or one.parameters or one.flops]
    own = _measured(contender(_name(run), record), "student", found)
    other = None if before is None else _measured(contender("baseline", before), "baseline", found)
    contenders = [*known, *([other] if other else []), own]
    warnings = [*(found.notes if found else []), *warnings_of(record, plan, [one for one, _ in taught])]
    if before is not None:
        warnings += against_baseline(record, before, plan, read_plan(before))
    levels = {name: own for name, (_, own) in zip(references, taught, strict=True) if own}
    sections = [
        replace(_summary(record, contenders, before, found), lead=verdict(own, other, known) if record.distils else ""),
        *([Section("Warnings", warnings)] if warnings else []),
        classes_section(contenders, own.name, "baseline"),
        precision_section({own.name: record}, METRICS[:3]) if before is None else _both(record, before),
        *training_sections(record, plan, ""),
        *_pairing(plan, record, levels),
        *(found.sections if found else []),
        _config(record),
        _environment(record),
    ]
    return write_report(run / "report.html", f"Run {own.name}", sections)


def comparison_report(path: Path, runs: Mapping[str, Path], found: Examination | None = None) -> Path:
    """Write one page about several runs; gives its path.

    Args:
        path: the HTML file to write.
        runs: name to be shown -> run folder, in the order of the table. Where there is a ``baseline`` and a
            ``distilled``, their difference is told as well.
        found: what `dfmsd.reporting.examine` saw of ``distilled``, ``baseline`` and the runs of its teachers.

    Raises:
        DfmsdError: no run is given, one of the folders does not exist, or a file in it is damaged.
    """
    if not runs:
        raise DfmsdError("no run to compare: give at least one run folder")
    records = {name: read_run(folder) for name, folder in runs.items()}
    keys = {"distilled": "student", "baseline": "baseline", **_teacher_names(records)}
    contenders = [_measured(contender(name, record), keys.get(name, ""), found) for name, record in records.items()]
    notes = [PERCENT, *_costs_in_words(contenders, found)]
    notes += [f"{name} has no metrics.json yet." for name, run in records.items() if run.metrics is None]
    pair = {"baseline", "distilled"} <= records.keys()
    if pair:
        notes += _limits(records["baseline"], records["distilled"])
    sections = [replace(headline(contenders, notes), lead=_lead(contenders, _teacher_names(records)))]
    if pair and records["distilled"].metrics is not None:
        sections.append(classes_section(contenders, "distilled", "baseline"))
    colours = dict.fromkeys(name for name in ("distilled", "baseline", *records) if name in records)
    sections.append(precision_section({name: records[name] for name in colours}, METRICS[:1]))
    for name, record in records.items():
        if record.distils:
            plan = read_plan(record)
            sections += training_sections(record, plan, f" ({name})")
            sections += _pairing(plan, record, _known_levels(teachers_of(plan), found), f" ({name})")
    told = [f"{name}: {warning}" for name, run in records.items() if run.distils for warning in _warnings(run)]
    told += found.notes if found else []
    sections[1:1] = [Section("Warnings", told)] if told else []
    return write_report(path, "Comparison of runs", [*sections, *(found.sections if found else [])])


def _lead(contenders: Sequence[Contender], teachers: Container[str]) -> str:
    """Say what came of the run ``distilled``, if there is one."""
    runs = {one.name: one for one in contenders}
    if "distilled" not in runs:
        return ""
    return verdict(runs["distilled"], runs.get("baseline"), [one for name, one in runs.items() if name in teachers])


def _warnings(record: RunRecord) -> list[str]:
    plan = read_plan(record)
    return warnings_of(record, plan, [_teacher(name, plan, None)[0] for name in teachers_of(plan)])


def _teacher_names(records: Mapping[str, RunRecord]) -> dict[str, str]:
    """Map runs to the references that other runs know them by as teachers."""
    references = {name for record in records.values() for name in teachers_of(read_plan(record))}
    folders = {folder.resolve(): name for name in references if (folder := folder_of(name))}
    own = {name: record.folder.resolve() for name, record in records.items()}
    return {name: folders[folder] for name, folder in own.items() if folder in folders}


def _teacher(name: str, plan: DistillConfig | None, found: Examination | None) -> tuple[Contender, Sequence[LevelSpec]]:
    """Tell what is known about a teacher; its own AP counts only where it was measured on the run's images."""
    folder = folder_of(name)
    record = read_run(folder) if folder else None
    one = contender(name, record) if record else Contender(name)
    theirs = read_plan(record) if record else None
    same = plan is not None and theirs is not None and _images(plan) == _images(theirs)
    one = replace(one, metrics=one.metrics if same else None)
    levels = found.levels.get(name, ()) if found else record.levels if record else ()
    return _measured(one, name, found), levels


def _images(plan: DistillConfig) -> tuple[object, ...]:
    return plan.data.root, plan.data.image_size, plan.data.holdout


def _known_levels(references: Sequence[str], found: Examination | None) -> dict[str, Sequence[LevelSpec]]:
    known = {name: _teacher(name, None, found)[1] for name in references}
    return {name: levels for name, levels in known.items() if levels}


def _measured(one: Contender, key: str, found: Examination | None) -> Contender:
    """Add what was measured; the metrics of a run's folder win, which are of all images."""
    if found is None:
        return one
    cost = found.costs.get(key)
    if cost is not None:
        one = replace(one, flops=cost.flops, latency=cost.latency)
    return one if one.metrics else replace(one, metrics=found.metrics.get(key))


def _summary(
    record: RunRecord, contenders: Sequence[Contender], before: RunRecord | None, found: Examination | None
) -> Section:
    if record.metrics is None:
        missing = "There is no metrics.json: the run is not finished, or was not evaluated."
        return Section("Result", [missing]) if len(contenders) == 1 else headline(contenders, [missing, PERCENT])
    notes = [PERCENT, *_costs_in_words(contenders, found)]
    if before is not None:
        notes += _limits(before, record)
    elif record.distils:
        notes.append(NO_BASELINE)
    return headline(contenders, notes)


def _costs_in_words(contenders: Sequence[Contender], found: Examination | None) -> list[str]:
    if found is None:
        return []
    notes = [
        "GFLOPs and CPU ms: the detection in one image, 2 FLOPs per multiply-add, median time on this machine with the "
        "detectors in turns."
    ]
    seen = [one.name for one in contenders if any(one.metrics is known for known in found.metrics.values())]
    if seen and not found.whole:
        notes.append(f"AP of {', '.join(seen)} is of the first {found.images} validation images only.")
    return notes


def _limits(baseline: RunRecord, distilled: RunRecord) -> list[str]:
    """Tell what a difference of the two does not say."""
    if any((run.metrics or {}).get("AP") is None for run in (baseline, distilled)):
        return []
    notes = [ONE_SEED]
    if baseline.trained_epochs != distilled.trained_epochs:
        notes.append("The two were not trained for the same number of epochs: the comparison is not fair.")
    return notes


def _name(run: Path) -> str:
    """Name a run; those of a comparison are named by their method, too."""
    run = run.resolve()
    return f"{run.parent.name}/{run.name}" if run.name.startswith("seed-") else run.name


def _both(record: RunRecord, before: RunRecord) -> Section:
    return precision_section({_name(record.folder): record, "baseline": before}, METRICS[:1])


def _pairing(
    plan: DistillConfig | None, record: RunRecord, levels: Mapping[str, Sequence[LevelSpec]], suffix: str = ""
) -> list[Section]:
    lines = paired_levels(plan, record.levels, levels) if plan and record.levels else []
    if not lines:
        return []
    rows = [
        (
            f"{line.stage}: {line.teacher}",
            *(f"{level.name} /{level.stride}, {level.channels} channels" for level in line.pair),
            line.alignment,
        )
        for line in lines
    ]
    return [Section(f"Levels{suffix}", (), Table(("stage: teacher", "student", "teacher", "alignment"), rows))]


def _config(record: RunRecord) -> Section:
    notes = [] if record.config else ["There is no config.yaml."]
    return Section("Config", notes, text=record.config)


def _environment(record: RunRecord) -> Section:
    if not record.environment:
        return Section("Environment", ["There is no environment.json: versions and machine are unknown."])
    return Section("Environment", text=yaml.safe_dump(dict(record.environment), sort_keys=False, allow_unicode=True))
