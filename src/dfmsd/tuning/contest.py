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
        name: ``trial 3``, ``config`` or ``baseline``.
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
    """Measure the best trials, the config and the baseline with two seeds on the held-out images.

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
    runs = {(name, seed): run for name, (_, of_seed) in contestants.items() for seed, run in of_seed.items()}
    complete(list(runs.values()), launcher, jobs, "repeats")
    for run in runs.values():
        remove_checkpoints(run.folder)
    return [
        Candidate(name, parameters, {seed: _ap(run) for seed, run in of_seed.items()})
        for name, (parameters, of_seed) in contestants.items()
    ]


def contestants_of(
    problem: Problem, best: Sequence[FrozenTrial]
) -> dict[str, tuple[Mapping[str, Any] | None, dict[int, NamedRun]]]:
    """Return name -> parameters and the runs by their seeds, of what is measured twice.

    Args:
        problem: what was searched.
        best: finished trials, best first.
    """
    folder, first = problem.folder, problem.config.seed
    second = (first + 1) % 2**32
    found: dict[str, tuple[Mapping[str, Any] | None, dict[int, NamedRun]]] = {}
    kept = [*best[:REPEATED], *(trial for trial in best[REPEATED:] if _is_config(problem, trial))]
    for trial in kept:
        name = CONFIG if _is_config(problem, trial) else f"trial {trial.number}"
        config = problem.config_of(trial.params)
        outs = {first: folder.path / trial.user_attrs[FOLDER], second: folder.repeat(name, second)}
        found[name] = trial.params, _seeded(name, config, outs)
    plan = problem.plans[CONFIG]
    references = {CONFIG: replace(problem.config, stages=list(plan.stages))}
    references[BASELINE] = problem.config.without_teachers()
    for name, config in references.items():
        if name not in found:
            outs = {seed: folder.repeat(name, seed) for seed in (first, second)}
            found[name] = None, _seeded(name, config, outs)
    return found


def choose_winner(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest mean over both seeds, the baseline aside; the config wins a draw."""
    taught = [candidate for candidate in candidates if candidate.name != BASELINE]
    return max(taught, key=lambda candidate: (candidate.mean, candidate.name == CONFIG))


def final_configs(problem: Problem, winner: Candidate) -> dict[str, DistillConfig]:
    """Return name -> config, on all training images: the winner, the config if it lost, and the winner's baseline."""
    plan = problem.plans[CONFIG]
    config = replace(problem.original, stages=list(plan.written))
    best = config if winner.parameters is None else problem.config_of(winner.parameters, written=True)
    configs = {BEST: best, **({} if winner.name == CONFIG else {CONFIG: config})}
    return {**configs, BASELINE: best.without_teachers()}


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
    runs = {
        name: NamedRun(f"{name} on all training images", _measured_once(config, problem.folder.final(name)))
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


def _is_config(problem: Problem, trial: FrozenTrial) -> bool:
    """Return whether a trial's parameters are those of the config."""
    own = replace(problem.config, stages=list(problem.plans[CONFIG].stages))
    return problem.config_of(trial.params) == own


def _measured_once(config: DistillConfig, out: Path) -> DistillConfig:
    """Measure on val after the last epoch alone, unless the config itself chooses by earlier ones."""
    choosing = config.deliver == "best" or config.patience is not None
    return replace(config, out=str(out), eval_every=config.eval_every if choosing else config.epochs)


def _ap(run: NamedRun) -> float:
    if run.ap is None:
        raise DfmsdError(f"{run}: no AP could be measured on the held-out images; raise data.holdout")
    return run.ap
