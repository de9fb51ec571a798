"""Optuna's choice of a trial's parameters, which depends on the seed, the trial and the finished trials only."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import Trial

from dfmsd.tuning.plans import CONFIG, has_own_basis
from dfmsd.tuning.problem import Problem
from dfmsd.tuning.space import BASIS, PLAN, Parameter


def draw(problem: Problem, study: optuna.Study, trial: Trial) -> dict[str, Any]:
    """Let Optuna choose the parameters of a trial, but those that it has already.

    Args:
        problem: what is searched.
        study: its sampler is replaced for each parameter.
        trial: of the study.
    """
    drawn: dict[str, Any] = {}
    for index, (key, parameter) in enumerate(problem.space.items(), 1):
        if key == BASIS and has_own_basis(str(drawn.get(PLAN, CONFIG))):
            continue
        study.sampler = seeded_sampler(problem.config.seed, trial.number, index)
        drawn[key] = suggest(trial, key, parameter)
    return drawn


def seeded_sampler(seed: int, number: int, index: int = 0) -> TPESampler:
    """Return a sampler whose random numbers depend on the arguments alone.

    Args:
        seed: of the search.
        number: of the trial.
        index: of the parameter in the trial, from 1; 0 for the trial itself.
    """
    sequence = np.random.SeedSequence([seed, number, index])
    return TPESampler(seed=int(sequence.generate_state(1)[0]))


def suggest(trial: Trial, key: str, parameter: Parameter) -> Any:
    """Return the value that Optuna chooses for a parameter of a trial."""
    match parameter.distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(key, choices)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(key, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(key, low, high, step=step, log=log)
    raise TypeError(f"{key} has no distribution")
