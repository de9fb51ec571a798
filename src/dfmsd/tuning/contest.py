"""After the search: the best configurations with a second seed, and the winner on all training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import percent
from dfmsd.launching.jobs import run_all
from dfmsd.launching.launcher import Launcher
from dfmsd.tuning.plans import CONFIG
from dfmsd.tuning.problem import Problem
from dfmsd.tuning.run import NamedRun, await_writer, remove_checkpoints
from dfmsd.tuning.search import best_trials
from dfmsd.tuning.study import FOLDER
from dfmsd.utils.console import console

REPEATED = 3
"""Best configurations that get a second seed."""
BASELINE = "baseline"
BEST = "best"


@dataclass(frozen=True)
class Candidate:
    """A configuration that is measured with two seeds.

    Attributes:
        name: ``trial 3``, ``config``, or ``baseline``, which is the winner without teachers.
        parameters: of the trial; None for the config as it is, and for the baseline.
        aps: seed -> AP on the held-out images, 0..1.
    """

    name: str
    parameters: Mapping[str, Any] | None
    aps: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.aps.values()) / len(self.aps)


def repeat_best(problem: Problem, trials: Sequence[FrozenTrial], launcher: Launcher, jobs: int) -> list[Candidate]:
    """Measure the best trials and the config with two seeds on the held-out images.

    Args:
        problem: what was searched.
        trials: of the study.
        launcher: where the runs are carried out.
        jobs: runs at a time.

    Raises:
        DfmsdError: no trial has finished, or a run fails.
    """
    best = best_trials(list(trials))
    if not best:
        raise DfmsdError("no trial has finished; see study.csv for the reasons, and raise trials to go on")
    contestants = contestants_of(problem, best)
    measured = _measure({name: runs for name, (_, runs) in contestants.items()}, launcher, jobs)
    return [Candidate(name, parameters, measured[name]) for name, (parameters, _) in contestants.items()]


def measure_baseline(problem: Problem, winner: Candidate, launcher: Launcher, jobs: int) -> Candidate:
    """Measure the winner without its teachers with two seeds on the held-out images.

    It has the winner's other settings, such as the learning rate, so that the difference is what the teachers give.

    Args:
        problem: what was searched.
        winner: of the repeats.
        launcher: where the runs are carried out.
        jobs: runs at a time.

    Raises:
        DfmsdError: a run fails.
    """
    config = _config_of(problem, winner).without_teachers()
    outs = {seed: problem.folder.repeat(f"{winner.name} {BASELINE}", seed) for seed in winner.aps}
    measured = _measure({BASELINE: _seeded(f"{winner.name} without teachers", config, outs)}, launcher, jobs)
    return Candidate(BASELINE, None, measured[BASELINE])


Contestants = dict[str, tuple[Mapping[str, Any] | None, dict[int, NamedRun]]]
"""Name -> parameters and the runs by their seeds."""


def contestants_of(problem: Problem, best: Sequence[FrozenTrial]) -> Contestants:
    """Return what is measured twice: the best trials and the config.

    Args:
        problem: what was searched.
        best: finished trials, best first.
    """
    folder, first = problem.folder, problem.config.seed
    second = (first + 1) % 2**32
    found: Contestants = {}
    kept = [*best[:REPEATED], *(trial for trial in best[REPEATED:] if _is_config(problem, trial))]
    for trial in kept:
        name = CONFIG if _is_config(problem, trial) else f"trial {trial.number}"
        config = problem.config_of(trial.params)
        outs = {first: folder.path / trial.user_attrs[FOLDER], second: folder.repeat(name, second)}
        found[name] = trial.params, _seeded(name, config, outs)
    if CONFIG not in found:
        outs = {seed: folder.repeat(CONFIG, seed) for seed in (first, second)}
        found[CONFIG] = None, _seeded(CONFIG, _own(problem), outs)
    return found


def choose_winner(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest mean over both seeds; the config wins a draw."""
    return max(candidates, key=lambda candidate: (candidate.mean, candidate.name == CONFIG))


def final_configs(problem: Problem, winner: Candidate) -> dict[str, DistillConfig]:
    """Return name -> config, on all training images: the winner, the config if it lost, and the winner's baseline."""
    best = _config_of(problem, winner, written=True)
    configs = {BEST: best, **({} if winner.name == CONFIG else {CONFIG: _own(problem, written=True)})}
    return {**configs, BASELINE: best.without_teachers()}


def final_folders(problem: Problem, winner: str) -> dict[str, Path]:
    """Return name -> run folder of what `final_configs` returns; another winner, of a longer search, has others.

    Args:
        problem: what was searched.
        winner: its name.
    """
    names = {BEST: winner, CONFIG: CONFIG, BASELINE: f"{winner} {BASELINE}"}
    return {name: problem.folder.final(folder) for name, folder in names.items()}


def retrain(problem: Problem, winner: Candidate, launcher: Launcher, jobs: int) -> dict[str, NamedRun]:
    """Train the winner and what it is compared with on all training images, and measure them once, on val.

    Args:
        problem: what was searched.
        winner: of the repeats.
        launcher: where the runs are carried out.
        jobs: runs at a time.

    Raises:
        DfmsdError: a run fails.
    """
    folders = final_folders(problem, winner.name)
    runs = {
        name: NamedRun(f"{name} on all training images", _measured_once(config, folders[name]))
        for name, config in final_configs(problem, winner).items()
    }
    near = any(stage.near is not False for run in runs.values() for stage in run.config.stages)
    at_once = 1 if near else jobs  # two may make the same near teacher
    complete(list(runs.values()), launcher, at_once, "final runs", report=True)
    return runs


def complete(runs: Sequence[NamedRun], launcher: Launcher, jobs: int, unit: str, *, report: bool = False) -> None:
    """Carry out the runs that are not finished.

    Raises:
        DfmsdError: a run fails.
    """
    failures: list[str] = []
    for run in runs:
        await_writer(run.folder)

    def on_end(run: NamedRun, failure: str | None) -> None:
        ap = None if failure else run.ap
        console.print(f"{run}: {failure or f'AP {percent(ap)}'}", highlight=False)
        if failure:
            failures.append(f"{run} has failed: {failure}")

    pending = [run for run in runs if not run.folder.finished]
    run_all(pending, jobs, on_end, console, launcher, unit=unit, report=report)
    if failures:
        raise DfmsdError(f"{failures[0]}; the search is kept, repeat the command to go on")


def _seeded(name: str, config: DistillConfig, outs: Mapping[int, Path]) -> dict[int, NamedRun]:
    return {
        seed: NamedRun(f"{name}, seed {seed}", replace(config, seed=seed, out=str(out))) for seed, out in outs.items()
    }


def _measure(runs: Mapping[str, Mapping[int, NamedRun]], launcher: Launcher, jobs: int) -> dict[str, dict[int, float]]:
    """Return the AP of runs, by name and seed, of which no checkpoint is kept."""
    every = [run for of_seed in runs.values() for run in of_seed.values()]
    complete(every, launcher, jobs, "repeats")
    for run in every:
        remove_checkpoints(run.folder)
    return {name: {seed: _ap(run) for seed, run in of_seed.items()} for name, of_seed in runs.items()}


def _own(problem: Problem, *, written: bool = False) -> DistillConfig:
    """Return the config as it is; ``written`` as in `Problem.config_of`."""
    plan = problem.plans[CONFIG]
    if written:
        return replace(problem.original, stages=list(plan.written))
    return replace(problem.config, stages=list(plan.stages))


def _config_of(problem: Problem, candidate: Candidate, *, written: bool = False) -> DistillConfig:
    if candidate.parameters is None:
        return _own(problem, written=written)
    return problem.config_of(candidate.parameters, written=written)


def _is_config(problem: Problem, trial: FrozenTrial) -> bool:
    """Return whether a trial's parameters are those of the config."""
    return problem.config_of(trial.params) == _own(problem)


def _measured_once(config: DistillConfig, out: Path) -> DistillConfig:
    """Measure on val after the last epoch alone, unless the config itself chooses by earlier ones."""
    choosing = config.deliver == "best" or config.patience is not None
    return replace(config, out=str(out), eval_every=config.eval_every if choosing else config.epochs)


def _ap(run: NamedRun) -> float:
    if run.ap is None:
        raise DfmsdError(f"{run}: no AP could be measured on the held-out images; raise data.holdout")
    return run.ap
