"""The study of a search: which trial comes next, when one is ended, and what happens to those of killed processes."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from dfmsd.engine.saved_config import refuse_another
from dfmsd.errors import DfmsdError
from dfmsd.tuning.config import first_rung, rungs
from dfmsd.tuning.plans import CONFIG
from dfmsd.tuning.problem import Problem, differing
from dfmsd.tuning.run import NamedRun, await_writer, evaluations, remove_checkpoints
from dfmsd.tuning.sampling import draw, seeded_sampler
from dfmsd.tuning.space import PLAN
from dfmsd.utils.files import write_text
from dfmsd.utils.lock import is_locked, locked, waiting

PROCESS, FOLDER, REASON, EPOCHS, SECONDS = "process", "folder", "reason", "epochs", "seconds"
"""Attributes of a trial: who runs it, its run folder, why it failed, and how many epochs and seconds it took."""
IDENTITY, SEARCH = "identity", "search"
"""Attributes of a study: its folder's identity, and what is searched."""


@dataclass(frozen=True)
class TrialRun(NamedRun):
    """The run of a trial."""

    trial: Trial = field(repr=False, kw_only=True)


class SharedStudy:
    """A study on which several processes work, each trial in the process that has asked for it.

    Optuna gives the trials' parameters. That a process has been killed is seen by the lock that it held in the search's
    folder, which works with every storage; its trial is then continued by another process, in the same run folder. The
    parameters of a trial depend on the seed, its number and the finished trials only, so that a search that was killed
    ends like one that was not.

    Args:
        storage: of the study.
        problem: what is searched.
        trials: number of trials of the whole study; None for no limit.
        is_over: whether the time is over, asked before each new trial.

    Raises:
        DfmsdError: the storage has a study of that name that searches something else, or belongs to another folder.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        problem: Problem,
        trials: int | None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.storage, self.problem, self.trials, self.is_over = storage, problem, trials, is_over
        self.folder = problem.folder
        self.name = self.folder.path.resolve().name
        self.process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.reported: dict[int, set[int]] = {}
        self.ended: set[int] = set()
        epochs = problem.config.epochs
        self.rungs = rungs(epochs)
        self.pruner = SuccessiveHalvingPruner(first_rung(epochs), reduction_factor=2)
        with waiting(self.folder.lock("asking")):
            self._open()

    def load(self, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        """Return the study as it is now."""
        return optuna.load_study(
            study_name=self.name, storage=self.storage, sampler=sampler or TPESampler(), pruner=self.pruner
        )

    def frozen(self) -> list[FrozenTrial]:
        """Return all trials that have begun, in their order."""
        return [trial for trial in self.load().get_trials() if trial.state != TrialState.WAITING]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Tell the other processes that this one lives."""
        with locked(self.folder.process(self.process)):
            yield

    def ask(self) -> TrialRun | None:
        """Return the next run, which may continue the trial of a killed process; None if there is none (at present).

        Raises:
            DfmsdError: the folder of the trial holds another run.
        """
        while True:
            with waiting(self.folder.lock("asking")):
                run = self._next()
            if run is None:
                return None
            if not self._settled(run):
                return run

    def is_running(self) -> bool:
        """Return whether any process, this one included, is running a trial, or has left one unfinished."""
        return any(trial.state == TrialState.RUNNING for trial in self.frozen())

    def should_end(self, run: TrialRun) -> bool:
        """Report the evaluations of a running trial, and return whether it has to end.

        Args:
            run: asked for by this process.
        """
        number = run.trial.number
        if number in self.ended:
            return True
        seen = self.reported.setdefault(number, set())
        for epoch, ap in evaluations(run.folder):
            if epoch in self.rungs and epoch not in seen:
                seen.add(epoch)
                if epoch not in self.storage.get_trial(run.trial._trial_id).intermediate_values:
                    run.trial.report(ap, epoch)
                if run.trial.should_prune():
                    run.trial.set_user_attr(EPOCHS, epoch)
                    self.load().tell(run.trial, state=TrialState.PRUNED)
                    self.ended.add(number)
                    return True
        return False

    def end(self, run: TrialRun, failure: str | None, seconds: float | None = None) -> None:
        """Tell the study how a run has ended.

        Args:
            run: asked for by this process.
            failure: why it failed; None if it finished.
            seconds: how long it took, without the time between two calls; None if that is not known.

        Raises:
            DfmsdError: the first trial has failed, so that the config itself does not work.
        """
        if self.should_end(run):  # a trial that has run past the evaluation that ends it
            return
        if failure is None:
            self._finish(run, seconds)
            return
        if run.trial.number == 0:
            raise DfmsdError(f"the first trial, that of the config itself, has failed: {failure}")
        self._give_up(run.trial, failure, TrialState.FAIL if failure.startswith("ended by") else TrialState.PRUNED)

    def _finish(self, run: TrialRun, seconds: float | None) -> None:
        ap = run.ap
        if ap is None:
            self._give_up(run.trial, "no AP could be measured", TrialState.PRUNED)
            return
        run.trial.set_user_attr(EPOCHS, run.config.epochs)
        if seconds is not None:
            run.trial.set_user_attr(SECONDS, seconds)
        self.load().tell(run.trial, ap)
        remove_checkpoints(run.folder)

    def _give_up(self, trial: Trial, reason: str, state: TrialState) -> None:
        """End a trial without a value: `PRUNED` keeps the sampler away from its parameters, `FAIL` does not."""
        trial.set_user_attr(REASON, reason)
        self.load().tell(trial, state=state)

    def _settled(self, run: TrialRun) -> bool:
        """Return whether nothing is left to run: it has finished before, or is known to be among the worse half."""
        if run.folder.finished:
            self.end(run, None)
            return True
        return self.should_end(run)

    def _open(self) -> None:
        """Create the study, or check the one that is there."""
        search = self.problem.describe()
        study = optuna.create_study(
            study_name=self.name, storage=self.storage, direction="maximize", load_if_exists=True
        )
        known = study.user_attrs
        if SEARCH not in known:
            study.set_user_attr(IDENTITY, self._identity())
            study.set_user_attr(SEARCH, search)
            return
        if keys := differing(known[SEARCH], search):
            raise DfmsdError(
                f"storage: its study {self.name} searches something else; {', '.join(keys[:4])} differ"
                f"{'' if len(keys) > 1 else 's'}: choose another out, or the config that it was made with"
            )
        file = self.folder.identity_file
        if not file.exists() or known.get(IDENTITY) != file.read_text(encoding="utf-8"):
            raise DfmsdError(
                f"storage: its study {self.name} belongs to another folder than {self.folder.path}; its processes "
                "share one folder: name that one as out, or another storage"
            )

    def _identity(self) -> str:
        file = self.folder.identity_file
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, secrets.token_hex(8))
        return file.read_text(encoding="utf-8")

    def _next(self) -> TrialRun | None:
        """Take up the trial of a killed process, or begin a new one; the caller holds the lock."""
        trials = self.frozen()
        left = next((trial for trial in trials if trial.state == TrialState.RUNNING and self._is_dead(trial)), None)
        if left is None and ((self.trials is not None and len(trials) >= self.trials) or self.is_over()):
            return None
        number = len(trials) if left is None else left.number
        study = self.load(seeded_sampler(self.problem.config.seed, number))
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(dict(self.problem.first))
        trial = study.ask() if left is None else Trial(study, left._trial_id)
        trial.set_user_attr(PROCESS, self.process)
        parameters = draw(self.problem, study, trial)
        return self._run(trial, parameters, trials)

    def _run(self, trial: Trial, parameters: Mapping[str, Any], trials: list[FrozenTrial]) -> TrialRun | None:
        if FOLDER not in trial.user_attrs:
            trial.set_user_attr(FOLDER, self._folder(trial.number, parameters, trials))
        path = self.folder.path / trial.user_attrs[FOLDER]
        name = f"trial {trial.number}: {parameters.get(PLAN, CONFIG)}"
        try:
            config = replace(self.problem.config_of(parameters), out=str(path))
        except DfmsdError as error:
            if trial.number == 0:
                raise
            self._give_up(trial, str(error), TrialState.PRUNED)
            return self._next()
        run = TrialRun(name, config, trial=trial)
        await_writer(run.folder)
        refuse_another(config, run.folder, f"that of trial {trial.number}", "remove it or change out")
        return run

    def _folder(self, number: int, parameters: Mapping[str, Any], trials: list[FrozenTrial]) -> str:
        """Return a new run folder, or that of a former trial with the same parameters, which is continued."""
        same = [trial for trial in trials if trial.params == parameters and trial.number != number]
        if same and all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in same):
            return str(same[-1].user_attrs[FOLDER])
        return str(self.folder.trial(number).relative_to(self.folder.path))

    def _is_dead(self, trial: FrozenTrial) -> bool:
        process = trial.user_attrs.get(PROCESS)
        if process == self.process:
            return False
        if process is None:  # killed right after it had asked, since asking holds the lock
            return True
        path = self.folder.process(process)
        if is_locked(path):
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True
