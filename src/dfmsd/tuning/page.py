"""Report of a search: its outcome, its trials, and Optuna's plots of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna import visualization
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from dfmsd.evaluation.evaluate import percent
from dfmsd.reporting import Section, Table, write_page
from dfmsd.reporting.page import Figure
from dfmsd.runfolder import RunFolder
from dfmsd.tuning.contest import final_folders
from dfmsd.tuning.outcome import FINAL_LABELS, TuneResult
from dfmsd.tuning.problem import Problem
from dfmsd.tuning.table import trial_rows
from dfmsd.utils.console import quiet

OBJECTIVE = "AP on held-out images, 0..1"
MARGIN = {"l": 48, "r": 12, "t": 24, "b": 40}
MIN_TRIALS = 2
"""Finished trials that a plot needs."""


def write_report(problem: Problem, study: optuna.Study, result: TuneResult) -> Path:
    """Write ``report.html``, one self-contained file.

    Args:
        problem: what was searched.
        study: with its trials.
        result: of the search.
    """
    trials = study.get_trials(deepcopy=False)
    sections = [
        Section("Result", lead=result.summary, table=_final_table(result), links=_links(problem, result)),
        Section("Two seeds on held-out images", [_SEEDS], _seeds_table(result)),
        *plot_sections(study, trials),
        Section("Trials", [_TRIALS], _trials_table(problem, trials)),
        Section("Search space", table=_space_table(problem)),
    ]
    return write_page(problem.folder.report_file, f"Search: {problem.folder.path.name}", sections)


_SEEDS = (
    "The first seed has chosen these configurations, so their AP with it is too high; that with the second is not. "
    "The teachers may have been trained on the held-out images. baseline: the winner without teachers, with its other "
    "settings, such as the learning rate."
)
_TRIALS = (
    "A trial whose AP after a quarter or half of the epochs is in the worse half ends there. Empty: the plan does not "
    "have the parameter."
)


def plot_sections(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[Section]:
    """Return the sections with Optuna's history, importance and parallel coordinates.

    Args:
        study: with its trials.
        trials: of the study.
    """
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(finished) < MIN_TRIALS:
        return [Section("Plots", [f"Plots need {MIN_TRIALS} finished trials."])]
    best = max(finished, key=lambda trial: trial.values[0])
    reached = f"the best is trial {best.number} with {percent(best.values[0])}"
    history = _figure(
        lambda: visualization.plot_optimization_history(study, target_name=OBJECTIVE),
        f"AP of {len(finished)} finished trials; {reached}.",
    )
    names = list(dict.fromkeys(name for trial in finished for name in trial.params))
    shared = [name for name in names if all(name in trial.params for trial in finished)]
    parallel = _figure(
        lambda: visualization.plot_parallel_coordinate(study, shared, target_name=OBJECTIVE),
        f"A line for each of {len(finished)} finished trials through its parameters and its AP; {reached}.",
    )
    sections = [Section("History", figures=[history])]
    if len({trial.values[0] for trial in finished}) > 1:
        evaluator = PedAnovaImportanceEvaluator()
        with quiet():
            values = optuna.importance.get_param_importances(study, evaluator=evaluator)
        table = Table(("parameter", "share"), [(name, f"{share:.2f}") for name, share in values.items()])
        importance = _figure(
            lambda: visualization.plot_param_importances(study, evaluator=evaluator, target_name=OBJECTIVE),
            "Importance: " + ", ".join(f"{name} {share}" for name, share in table.rows) + ".",
            table,
        )
        note = (
            "How much each parameter sets the better trials apart from the others (PED-ANOVA). Few trials say little."
        )
        sections.append(Section("Importance of the parameters", [note], figures=[importance]))
    missing = [name for name in names if name not in shared]
    notes = [f"Without {', '.join(missing)}, which not every plan has."] if missing else []
    return [*sections, Section("Parallel coordinates", notes, figures=[parallel])]


def _figure(plot: Callable[[], Any], alt: str, values: Table | None = None) -> Figure:
    """Turn one of Optuna's figures into one of a report page, which has colors of its own."""
    with quiet():
        drawn: dict[str, Any] = json.loads(plot().to_json())
    layout = {key: value for key, value in drawn["layout"].items() if key not in ("template", "title")}
    return Figure("", drawn["data"], {**layout, "margin": MARGIN}, alt, values, height=420)


def _final_table(result: TuneResult) -> Table:
    return Table(
        ("trained on all training images", "AP on val"),
        [(label, percent(result.final[name])) for name, label in FINAL_LABELS.items() if name in result.final],
    )


def _seeds_table(result: TuneResult) -> Table:
    seeds = list(result.candidates[0].aps)
    rows = [
        (one.name, *(percent(one.aps[seed]) for seed in seeds), percent(one.mean))
        for one in sorted(result.candidates, key=lambda one: -one.mean)
    ]
    return Table(("configuration", *(f"seed {seed}" for seed in seeds), "mean"), rows)


def _trials_table(problem: Problem, trials: Sequence[FrozenTrial]) -> Table:
    rows = trial_rows(problem, trials)
    names = ["trial", "what", *problem.space]
    return Table(names, [tuple(_cell(row[name]) for name in names) for row in rows])


def _space_table(problem: Problem) -> Table:
    rows = [(key, _values(parameter.as_json()["attributes"])) for key, parameter in problem.space.items()]
    return Table(("parameter", "values"), rows)


def _values(attributes: Mapping[str, Any]) -> str:
    if "choices" in attributes:
        return ", ".join(_cell(choice) for choice in attributes["choices"])
    return f"{attributes['low']:g} to {attributes['high']:g}{', logarithmic' if attributes.get('log') else ''}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _links(problem: Problem, result: TuneResult) -> list[tuple[str, str]]:
    folders = final_folders(problem, result.winner)
    pages = {FINAL_LABELS[name]: RunFolder(folders[name]).report_file for name in result.final}
    root = problem.folder.path
    return [(label, page.relative_to(root).as_posix()) for label, page in pages.items() if page.is_file()]
