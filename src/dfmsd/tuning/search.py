"""The search itself: trials in parallel processes until trials or hours are used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from dfmsd.evaluation.evaluate import percent
from dfmsd.launching.jobs import run_all
from dfmsd.launching.launcher import Launcher
from dfmsd.tuning.study import SECONDS, SharedStudy, TrialRun
from dfmsd.tuning.table import describe, write_table
from dfmsd.utils.console import console
from dfmsd.utils.durations import HOUR, describe_duration

POLL = 1.0
"""Seconds between two looks at the trials of other processes."""
FOLLOWING = 9
"""Whole runs after the search, at most: second seeds, the baseline, and those on all training images."""


@dataclass
class Budget:
    """Trials and hours of a search.

    Args:
        trials: of the whole study; None for no limit.
        hours: of this process, with the runs after the search; None for no limit.
        jobs: runs at a time.
        clock: returns seconds.
    """

    trials: int | None
    hours: float | None
    jobs: int = 1
    clock: Callable[[], float] = time.monotonic
    durations: list[float] = field(default_factory=list)
    longest: float = 0.0
    """Seconds of the longest whole run."""

    def __post_init__(self) -> None:
        """Start the clock."""
        self.start = self.clock()

    def note(self, seconds: float, *, whole: bool) -> None:
        """Note the duration of a trial.

        Args:
            seconds: its duration.
            whole: it has run to its end.
        """
        self.durations.append(seconds)
        if whole:
            self.longest = max(self.longest, seconds)

    def recall(self, seconds: Iterable[float]) -> None:
        """Note how long the whole runs of earlier calls have taken."""
        self.longest = max([self.longest, *seconds])

    def is_over(self) -> bool:
        """Return whether another trial, and what follows the search, would exceed the hours."""
        if self.hours is None:
            return False
        rest = self.longest * (1 + FOLLOWING / self.jobs)
        return self.clock() - self.start + rest > self.hours * HOUR

    def seconds_left(self, trials: int) -> float | None:
        """Estimate the seconds to the end of everything after so many trials; None before the first one has ended."""
        if not self.durations:
            return None
        after = FOLLOWING * self.longest / self.jobs
        mean = sum(self.durations) / len(self.durations)
        ends = [] if self.trials is None else [max(0, self.trials - trials) * mean / self.jobs + after]
        if self.hours is not None:
            ends.append(max(0.0, self.hours * HOUR - (self.clock() - self.start)))
        return min(ends)


def search(study: SharedStudy, budget: Budget, launcher: Launcher) -> None:
    """Run trials until the budget is used up and no process has one left, and write ``study.csv`` after each.

    Args:
        study: shared with other processes.
        budget: of the search.
        launcher: where the trials run.

    Raises:
        DfmsdError: the config itself does not work, or a run folder holds another run.
        Stopped: a signal ended the search; the trials are saved, and the next call continues them.
    """
    begun: dict[int, float] = {}

    def ask() -> TrialRun | None:
        run = study.ask()
        if run is not None:
            begun[run.trial.number] = budget.clock()
        return run

    def on_end(run: TrialRun, failure: str | None) -> None:
        seconds = budget.clock() - begun[run.trial.number]
        study.end(run, failure, seconds)
        trials = study.frozen()
        write_table(study.problem, trials)
        ended = trials[run.trial.number]
        budget.note(seconds, whole=ended.state == TrialState.COMPLETE)
        console.print(_progress(run, ended, trials, budget), highlight=False)

    budget.recall(trial.user_attrs[SECONDS] for trial in study.frozen() if SECONDS in trial.user_attrs)
    while True:
        done = sum(trial.state.is_finished() for trial in study.frozen())
        total = None if budget.trials is None else max(0, budget.trials - done)
        runs = iter(ask, None)
        run_all(
            runs,
            budget.jobs,
            on_end,
            console,
            launcher,
            unit="trials",
            total=total,
            stop=study.should_end,
            report=False,
        )
        if not study.is_running():
            return
        time.sleep(POLL)  # other processes have trials, which this one takes over if they are killed


def best_trials(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the finished trials, best first; of those with equal parameters only the first."""
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    ordered = sorted(finished, key=lambda trial: (-trial.values[0], trial.number))
    return [
        trial for place, trial in enumerate(ordered) if all(trial.params != other.params for other in ordered[:place])
    ]


def _progress(run: TrialRun, ended: FrozenTrial, trials: list[FrozenTrial], budget: Budget) -> str:
    done = sum(trial.state.is_finished() for trial in trials)
    best = best_trials(trials)
    parts = [f"{run}: {describe(ended)}"]
    parts += [f"best {percent(best[0].values[0])} of trial {best[0].number}"] if best else []
    left = budget.seconds_left(done)
    remaining = "" if left is None else f", at most about {describe_duration(left)} left"
    of = "" if budget.trials is None else f" of {budget.trials}"
    parts.append(f"{done}{of} trials done{remaining}")
    return "; ".join(parts)
