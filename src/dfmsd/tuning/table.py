"""The table of trials, ``study.csv``: what became of each, and its parameters."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from dfmsd.evaluation.evaluate import percent
from dfmsd.tuning.problem import Problem
from dfmsd.tuning.study import EPOCHS, FOLDER, REASON
from dfmsd.utils.files import write_text


def describe(trial: FrozenTrial) -> str:
    """Say how a trial has ended."""
    if trial.state == TrialState.COMPLETE:
        return f"AP {percent(trial.values[0])}"
    if REASON in trial.user_attrs:
        return f"failed: {trial.user_attrs[REASON]}"
    if trial.state == TrialState.PRUNED:
        epoch = trial.user_attrs[EPOCHS]
        return f"ended after {epoch} epochs with AP {percent(trial.intermediate_values[epoch])}, in the worse half"
    return "running"


def trial_rows(problem: Problem, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Return a row for each trial: what became of it, and its parameters.

    Args:
        problem: what was searched.
        trials: of the study.
    """
    rows = []
    for trial in trials:
        seconds = trial.duration.total_seconds() if trial.duration else None
        parameters = {key: trial.params.get(key) for key in problem.space}
        row = {"trial": trial.number, "state": trial.state.name.lower(), "AP": trial.value, "what": describe(trial)}
        rows.append({**row, **parameters, "seconds": seconds, "run": trial.user_attrs.get(FOLDER)})
    return rows


def write_table(problem: Problem, trials: Sequence[FrozenTrial]) -> None:
    """Write ``study.csv``."""
    rows = trial_rows(problem, trials)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["trial"])
    table.writeheader()
    table.writerows(rows)
    write_text(problem.folder.table_file, text.getvalue())
