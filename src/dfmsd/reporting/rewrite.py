"""The report of finished runs, written anew with all that can be found out about them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dfmsd.detectors import Detector, load_detector
from dfmsd.errors import DfmsdError
from dfmsd.reporting.examine import Examination, examine
from dfmsd.reporting.plan import folder_of, read_plan, teachers_of
from dfmsd.reporting.records import read_run
from dfmsd.reporting.reports import comparison_report, run_report
from dfmsd.runfolder import RunFolder

logger = logging.getLogger("dfmsd")


def rewrite_report(folder: Path, baseline: Path | None, teachers: Sequence[str], images: int) -> Path:
    """Write ``report.html`` of a run, or of a folder of runs; gives its path.

    What the run's config names but is no longer there is left out, and the page says so; what is named here has to be
    there.

    Args:
        folder: a run folder, or one whose folders are runs. Of these ``distilled`` and ``baseline`` are looked at.
        baseline: run folder to compare a run with.
        teachers: references; none takes those of the run's config.
        images: validation images to look at, at most; at least 1.

    Raises:
        DfmsdError: there is no run, or one of the arguments is of no use.
    """
    if images < 1:
        raise DfmsdError(f"images: {images} is below 1; give the number of validation images to look at")
    if RunFolder(folder).exists:
        found = _examined(folder, baseline, teachers, images)
        return run_report(folder, baseline=baseline, teachers=teachers, found=found)
    if not folder.is_dir():
        raise DfmsdError(f"no folder {folder}: give that of a run (`out:`), of several runs or of a comparison")
    runs = _runs_in(folder)
    if not runs:
        raise DfmsdError(f"{folder} holds neither a run nor folders of runs; give what `out:` named")
    if baseline or teachers:
        raise DfmsdError(f"{folder} is no run folder: --baseline and --teacher belong to the report of one run")
    seen = _examined(runs["distilled"], runs.get("baseline"), (), images) if "distilled" in runs else None
    return comparison_report(folder / "report.html", runs, seen)


def _runs_in(folder: Path) -> dict[str, Path]:
    """Name the runs, teachers first, then the baseline."""
    names = [path.name for path in folder.iterdir() if RunFolder(path).exists]
    names.sort(key=lambda name: (not name.startswith("teacher"), name != "baseline", name))
    return {name: folder / name for name in names}


def _examined(run: Path, baseline: Path | None, teachers: Sequence[str], images: int) -> Examination:
    """Look at the detectors; what the user did not name may be missing."""
    plan = read_plan(read_run(run))
    detectors: dict[str, Detector] = {}
    missing: list[str] = []
    wanted = {"student": str(run), **({"baseline": str(baseline)} if baseline else {})}
    wanted |= {name: str(folder_of(name) or name) for name in teachers or teachers_of(plan)}
    for name, reference in wanted.items():
        try:
            detectors[name] = load_detector(reference)
        except DfmsdError as error:
            if name == "baseline" or name in teachers:
                raise
            missing.append(str(error))
    found = Examination(0, whole=False)
    if plan is None:
        missing.append("its config.yaml cannot be read by this version of dfmsd")
    elif "student" in detectors:
        try:
            found = examine(plan, run, detectors, images)
        except DfmsdError as error:
            missing.append(str(error))
    for reason in missing:
        logger.warning("%s: not looked at: %s", run, reason)
    found.notes += [f"Not looked at: {reason}" for reason in missing]
    return found
