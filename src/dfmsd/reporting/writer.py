"""Reports of finished runs, including an analysis of their detectors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dfmsd.detectors import Detector, load_detector
from dfmsd.detectors.classnames import with_names
from dfmsd.engine.configfile import read_run_config
from dfmsd.errors import DfmsdError
from dfmsd.reporting.analysis import Analysis, analyze
from dfmsd.reporting.records import read_run
from dfmsd.reporting.run_page import run_report
from dfmsd.reporting.runconfig import run_config, teacher_folder, teacher_references
from dfmsd.reporting.runs_page import comparison_report
from dfmsd.runfolder import RunFolder, check_run
from dfmsd.utils.coerce import coerce
from dfmsd.utils.files import check_output

logger = logging.getLogger("dfmsd")


def report(
    folder: str | Path, baseline: str | Path | None = None, teachers: Sequence[str] = (), images: int = 200
) -> Path:
    """Write ``report.html`` of a run, or of a folder of runs.

    Teachers and data of the run's config that no longer exist are left out, and the page says so; those passed as
    arguments must exist.

    Args:
        folder: a run folder, or a folder of run folders, of which ``distilled`` and ``baseline`` are analyzed.
        baseline: run folder to compare a run with.
        teachers: references; by default those of the run's config.
        images: maximum number of validation images to analyze, at least 1.

    Returns:
        Path of the page.

    Raises:
        DfmsdError: there is no run, or an argument is invalid.
    """
    if coerce(images, int, "images") < 1:
        raise DfmsdError(f"images must be at least 1, got {images}")
    folder = Path(folder)
    check_run(folder)
    if baseline:
        check_run(Path(baseline), folder, name="baseline")
    check_output(RunFolder(folder).report_file)
    if RunFolder(folder).exists:
        analysis = _analyze(folder, baseline, teachers, images)
        return run_report(folder, baseline=baseline, teachers=teachers, analysis=analysis)
    runs = _runs_in(folder)
    if not runs:
        raise DfmsdError(f"{folder} is neither a run folder nor a folder of runs; pass the `out:` of a run")
    if baseline or teachers:
        raise DfmsdError(f"{folder} is not a run folder; `baseline` and `teacher` apply to the report of one run")
    multi = _analyze(runs["distilled"], runs.get("baseline"), (), images) if "distilled" in runs else None
    return comparison_report(RunFolder(folder).report_file, runs, multi)


def _runs_in(folder: Path) -> dict[str, Path]:
    """Return the runs by name: teachers, then the baseline, then others."""
    names = [path.name for path in folder.iterdir() if RunFolder(path).exists]
    names.sort(key=lambda name: (not name.startswith("teacher"), name != "baseline", name))
    return {name: folder / name for name in names}


def _reason(run: Path) -> str:
    """Say why a config cannot be read, such as a loss of the user's that is not registered here."""
    try:
        read_run_config(run)
    except DfmsdError as error:
        return f" ({error})"
    return ""


def _analyze(run: Path, baseline: str | Path | None, teachers: Sequence[str], images: int) -> Analysis:
    """Analyze the detectors of a run; those that the user did not name may be missing."""
    config = run_config(read_run(run))
    references = {"student": str(run), **({"baseline": str(baseline)} if baseline else {})}
    references |= {name: str(teacher_folder(name) or name) for name in teachers or teacher_references(config)}
    detectors: dict[str, Detector] = {}
    missing: list[str] = []
    for name, reference in references.items():
        try:
            detector, teaches = load_detector(reference), name not in ("student", "baseline")
            detectors[name] = with_names(detector, config.teacher_classes) if config and teaches else detector
        except DfmsdError as error:
            if name == "baseline" or name in teachers:
                raise
            missing.append(str(error))
    analysis = Analysis(0, whole=False)
    if config is None:
        missing.append(f"this version of dfmsd cannot read its config.yaml{_reason(run)}")
    elif "student" in detectors:
        try:
            analysis = analyze(config, run, detectors, images)
        except DfmsdError as error:
            missing.append(str(error))
    for reason in missing:
        logger.warning("%s: not analyzed: %s", run, reason)
    analysis.notes += [f"Not analyzed: {reason}" for reason in missing]
    return analysis
