"""Search for the settings of a distillation, from its config to its report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.opening import has_split
from dfmsd.detectors import check_frozen
from dfmsd.engine.build import check_batches, check_contents
from dfmsd.engine.fingerprints import fingerprint_data, refuse_outdated
from dfmsd.errors import DfmsdError
from dfmsd.estimation.estimator import estimate
from dfmsd.launching.choice import opened
from dfmsd.launching.launcher import Launcher
from dfmsd.runfolder import RunFolder
from dfmsd.tuning.config import TuneConfig
from dfmsd.tuning.contest import BEST, choose_winner, final_configs, measure_baseline, repeat_best, retrain
from dfmsd.tuning.folder import SearchFolder
from dfmsd.tuning.outcome import TuneResult, summarize, write_best
from dfmsd.tuning.page import write_report
from dfmsd.tuning.plans import teachers_of
from dfmsd.tuning.preparation import is_prepared, make_teachers, prepare_elsewhere
from dfmsd.tuning.problem import Problem, pose
from dfmsd.tuning.run import remove_checkpoints
from dfmsd.tuning.search import FOLLOWING, Budget, search
from dfmsd.tuning.storage import SQLITE, explain_lost, open_storage
from dfmsd.tuning.study import FOLDER, SharedStudy
from dfmsd.tuning.table import write_table
from dfmsd.utils.coerce import coerce
from dfmsd.utils.console import console, quieted
from dfmsd.utils.distributed import check_rank
from dfmsd.utils.durations import HOUR, describe_duration
from dfmsd.utils.files import check_writable, write_json
from dfmsd.utils.lock import is_locked, waiting
from dfmsd.utils.signals import preemptible


def tune(
    config: TuneConfig,
    *,
    trials: int | None,
    hours: float | None = None,
    jobs: int = 1,
    storage: str | None = None,
    allow_weak_teacher: bool = False,
    dry_run: bool = False,
) -> TuneResult | None:
    """Search for the settings of a distillation; repeating the call continues the search.

    Args:
        config: the distillation, and what is varied in it.
        trials: number of trials of the whole study, over all calls and processes.
        hours: time for everything; no trial begins that would exceed it.
        jobs: runs at a time, each in a process with its share of the cores.
        storage: URL of the study; None is an SQLite file in ``config.out``.
        allow_weak_teacher: accept teachers that know none of the classes or have an AP of about 0.
        dry_run: print what is searched and about how long it takes, and do nothing else.

    Returns:
        The outcome; None for a dry run.

    Raises:
        DfmsdError: invalid input, a storage that cannot be reached or whose study searches something else, data or
            teachers that have changed since the search began, or a config that does not work.
        Stopped: SIGTERM, SIGUSR1 or SIGHUP ended the search; the runs are saved, and the next call continues them.
    """
    budget = _check_budget(trials, hours, jobs)
    check_rank((1, 1))
    folder = SearchFolder(Path(config.out))
    if RunFolder(folder.path).exists:
        raise DfmsdError(f"out: {folder.path} holds a run; choose another folder for the search")
    if dry_run:
        problem = _pose(config, folder).problem
        print_problem(problem)
        _print_estimate(problem, budget)
        return None
    check_writable(folder.path)
    url = storage or f"{SQLITE}{folder.database}"
    with opened(config) as launcher:
        return _tune(config, folder, budget, url, launcher, allow_weak=allow_weak_teacher)


class Posed(NamedTuple):
    """A search before its first trial."""

    problem: Problem
    data: CocoDataModule
    """Of the trials."""
    whole: CocoDataModule
    """Of the runs on all training images."""


def _pose(config: TuneConfig, folder: SearchFolder) -> Posed:
    """Open the data, and work out what is searched on them; refuse data that only the last runs would find bad."""
    check_frozen(config.student)
    if not has_split(config.data, "val"):
        raise DfmsdError(
            f"data.val: what a search finds is measured on val, which {config.data.root} does not have; divide its "
            "images into train and val, or name another split in data.val"
        )
    trial = config.as_trial()
    data = CocoDataModule(trial.data, digest=trial.teacher_cache is not None, teacher_size=trial.teacher_size)
    check_contents(data)
    check_batches(data, trial.optim)
    whole = CocoDataModule(config.as_written().data)
    check_contents(whole)
    return Posed(pose(config, data.class_names, folder), data, whole)


def _tune(
    config: TuneConfig, folder: SearchFolder, budget: Budget, url: str, launcher: Launcher, *, allow_weak: bool
) -> TuneResult:
    problem, data, whole = _pose(config, folder)
    with explain_lost(url), quieted(logging.getLogger("optuna"), logging.WARNING), preemptible():
        study = _open_study(url, problem, budget)
        _refuse_other_data(problem, ("trials", "repeats", "teachers"), data)
        _refuse_other_data(problem, ("final",), whole)
        print_problem(problem)
        with study.joined(), _saying_how_to_go_on():
            with _in_turn(folder, "teachers", "makes the teachers"):
                if launcher.elsewhere and not is_prepared(problem):
                    prepare_elsewhere(config, launcher, allow_weak=allow_weak)
                make_teachers(problem, data, allow_weak=allow_weak)
            search(study, budget, launcher)
            with _in_turn(folder, "finishing", "runs what follows the search"):
                return finish(problem, study, launcher, budget.jobs)


def _refuse_other_data(problem: Problem, kinds: Sequence[str], data: CocoDataModule) -> None:
    """Refuse to continue a search whose runs had other data, apart from the search space."""
    fixed = {name: value for name, value in fingerprint_data(data).items() if name not in problem.space}
    refuse_outdated(problem.folder.runs(*kinds), fixed, "restore it")


def print_problem(problem: Problem) -> None:
    """Print the search space and the first trial."""
    table = Table("parameter", "values", "first trial", title="search space")
    for key, parameter in problem.space.items():
        described = parameter.as_json()["attributes"]
        values = described.get("choices") or [f"{described['low']:g} to {described['high']:g}"]
        table.add_row(key, ", ".join(map(str, values)), str(problem.first[key]))
    console.print(table)
    for number, name in enumerate(teachers_of(problem.config), 1):
        console.print(f"T{number}: {name}", highlight=False)


def finish(problem: Problem, study: SharedStudy, launcher: Launcher, jobs: int) -> TuneResult:
    """Repeat the best trials with a second seed, train the winner on all images, and write the files.

    Args:
        problem: what was searched.
        study: without a running trial.
        launcher: where the runs are carried out.
        jobs: runs at a time.

    Raises:
        DfmsdError: no trial has finished, or a run fails.
    """
    trials = study.frozen()
    write_table(problem, trials)
    candidates = repeat_best(problem, trials, launcher, jobs)
    winner = choose_winner(candidates)
    candidates.append(measure_baseline(problem, winner, launcher, jobs))
    best = write_best(problem, final_configs(problem, winner)[BEST], winner)
    runs = retrain(problem, winner, launcher, jobs)
    final = {name: run.ap for name, run in runs.items()}
    summary = summarize(candidates, winner, final)
    result = TuneResult(best, winner.name, summary, tuple(candidates), final, problem.folder.path)
    write_json(problem.folder.result_file, result.as_json())
    write_report(problem, study.load(), result)
    for trial in trials:
        remove_checkpoints(RunFolder(problem.folder.path / trial.user_attrs[FOLDER]))
    console.print(summary, highlight=False)
    console.print(str(problem.folder), highlight=False)
    return result


def _check_budget(trials: int | None, hours: float | None, jobs: int) -> Budget:
    if trials is None and hours is None:
        raise DfmsdError("trials: missing; pass `trials`, `hours` or both")
    if trials is not None and coerce(trials, int, "trials") < 1:
        raise DfmsdError(f"trials must be at least 1, got {trials}")
    if hours is not None and not coerce(hours, float, "hours") > 0:
        raise DfmsdError(f"hours must be above 0, got {hours}")
    if coerce(jobs, int, "jobs") < 1:
        raise DfmsdError(f"jobs must be at least 1, got {jobs}")
    return Budget(trials, hours, jobs)


def _open_study(url: str, problem: Problem, budget: Budget) -> SharedStudy:
    """Open the study; a refused one leaves no folder behind."""
    folder = problem.folder
    new = not folder.path.exists()
    try:
        with waiting(folder.lock("opening")):  # two processes cannot make the tables of a database at once
            storage = open_storage(url)
        return SharedStudy(storage, problem, budget.trials, budget.is_over)
    except DfmsdError:
        if new:
            folder.remove_empty()
        raise


@contextmanager
def _in_turn(folder: SearchFolder, lock: str, what: str) -> Iterator[None]:
    """Let one process at a time do something that the others then find done."""
    if is_locked(folder.lock(lock)):
        console.print(f"another process {what}: waiting for it")
    with waiting(folder.lock(lock)):
        yield


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted: everything so far is kept; repeat the command to continue")
        raise


def _print_estimate(problem: Problem, budget: Budget) -> None:
    """Print how long a run of the first trial's config takes, and the search if no trial ends early."""
    seconds = estimate(problem.config_of(problem.first, written=True)).prediction.hours * HOUR
    line = f"a whole run takes about {describe_duration(seconds)} on this machine, without making its teachers"
    if budget.trials is not None:
        whole = (budget.trials + FOLLOWING) * seconds / budget.jobs
        line += f"; {budget.trials} trials and the runs after them take at most about {describe_duration(whole)}"
    console.print(line, highlight=False)
