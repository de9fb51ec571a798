"""How a study is shared and continued: by killed, repeated and parallel processes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from tests.tuning.conftest import FakeRuns, Killed

from dfmsd.errors import DfmsdError
from dfmsd.launching.local import LocalLauncher
from dfmsd.tuning.folder import SearchFolder
from dfmsd.tuning.problem import Problem
from dfmsd.tuning.search import Budget, search
from dfmsd.tuning.storage import open_storage
from dfmsd.tuning.study import FOLDER, PROCESS, SharedStudy
from dfmsd.utils.lock import locked

MakeProblem = Callable[..., Problem]
TRIALS = 6


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def opened(problem: Problem, trials: int | None = TRIALS, **options: Any) -> SharedStudy:
    return SharedStudy(open_storage(f"journal:///{problem.folder.path}.log"), problem, trials, **options)


def carried_out(problem: Problem, trials: int = TRIALS) -> SharedStudy:
    study = opened(problem, trials)
    with study.joined():
        search(study, Budget(trials, None), LocalLauncher())
    return study


def told(study: SharedStudy) -> list[Any]:
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in study.frozen()]


def test_continued_search_leaves_time_for_the_runs_after_it(
    make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path
) -> None:
    study = opened(make_problem(tmp_path / "out"), 1)
    ticks = count(0, 720)
    with study.joined():
        search(study, Budget(1, None, clock=lambda: next(ticks)), LocalLauncher())
        budget = Budget(None, 1.0, clock=lambda: 0.0)  # ten runs as long as the first one take two hours
        study.trials, study.is_over = 3, budget.is_over
        search(study, budget, LocalLauncher())
    assert len(study.frozen()) == 1


def test_search_begins_with_the_config_and_ends_the_worse_half_early(
    make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path
) -> None:
    study = carried_out(make_problem(tmp_path / "out"))
    trials = study.frozen()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert trials[0].params == {"plan": "config", "loss.alpha": 1.0, "balance": 2.0}
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert {max(trial.intermediate_values) for trial in trials if trial.state == TrialState.PRUNED} <= {2, 4}
    assert max(trial.values[0] for trial in trials if trial.values) > trials[0].values[0]
    for trial in trials:  # what may be continued keeps its checkpoint, the others only student and metrics
        folder = study.folder.path / trial.user_attrs[FOLDER]
        assert (folder / "last.ckpt").exists() == (trial.state == TrialState.PRUNED)
    assert all(("basis" in trial.params) == (trial.params["plan"] != "config") for trial in trials)


@pytest.mark.parametrize("epochs", [1, 11])
def test_killed_search_ends_like_one_that_was_not(
    make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path, epochs: int
) -> None:
    whole = told(carried_out(make_problem(tmp_path / "whole" / "out")))
    problem = make_problem(tmp_path / "killed" / "out")
    fake.begun, fake.epochs, fake.killed_at = [], 0, epochs
    with pytest.raises(Killed):
        carried_out(problem)
    left = [trial for trial in opened(problem).frozen() if trial.state == TrialState.RUNNING]
    assert len(left) == 1
    fake.killed_at = None
    assert told(carried_out(problem)) == whole
    continued = [begun for name, begun in fake.begun if name.startswith(f"trial {left[0].number}:")]
    assert continued[0] == 0
    assert continued[1] > 0  # from its checkpoint


def test_repeating_a_finished_search_runs_nothing_and_more_trials_go_on(
    make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path
) -> None:
    problem = make_problem(tmp_path / "out")
    first = told(carried_out(problem, 3))
    begun = len(fake.begun)
    assert told(carried_out(problem, 3)) == first
    assert len(fake.begun) == begun
    assert told(carried_out(problem, 5))[:3] == first
    assert told(carried_out(problem, 5)) == told(carried_out(make_problem(tmp_path / "other" / "out"), 5))


def test_two_processes_share_the_trials(make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path) -> None:
    problem = make_problem(tmp_path / "out")
    one, other = opened(problem, 4), opened(problem, 4)
    with one.joined(), other.joined():
        runs = [study.ask() for study in (one, other, one, other)]
        assert [run.trial.number for run in runs if run] == [0, 1, 2, 3]
        assert len({run.config.out for run in runs if run}) == 4
        assert one.ask() is None
        assert one.is_running()


def test_trial_of_a_lost_process_is_taken_over_but_not_that_of_a_living_one(
    make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path
) -> None:
    problem = make_problem(tmp_path / "out")
    lost, living, next_one = (opened(problem, 2) for _ in range(3))
    with living.joined(), next_one.joined():
        with lost.joined():
            first = lost.ask()
            second = living.ask()
            assert next_one.ask() is None
        taken = next_one.ask()
        assert first is not None
        assert second is not None
        assert taken is not None
        assert (taken.trial.number, taken.config) == (0, first.config)
        assert next_one.ask() is None


def test_process_that_is_killed_while_it_asks_leaves_no_gap(
    make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = told(carried_out(make_problem(tmp_path / "whole" / "out"), 3))
    problem = make_problem(tmp_path / "killed" / "out")

    def kill(*_: object) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("dfmsd.tuning.study.draw", kill)
        with pytest.raises(Killed):
            carried_out(problem, 3)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "set_user_attr", kill)
        with pytest.raises(Killed):
            carried_out(problem, 3)
    assert told(carried_out(problem, 3)) == whole


def test_equal_parameters_continue_the_folder_of_the_former_trial(
    make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path
) -> None:
    problem = make_problem(tmp_path / "out")
    study = carried_out(problem, 1)
    study.load().enqueue_trial(dict(problem.first))
    study.trials = 2
    with study.joined():
        assert study.ask() is None
    again = study.frozen()[1]
    assert again.user_attrs[FOLDER] == study.frozen()[0].user_attrs[FOLDER]
    assert again.values == study.frozen()[0].values
    assert len(fake.begun) == 1


def test_failed_trials_are_kept_with_their_reason(make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path) -> None:
    problem = make_problem(tmp_path / "out")
    plans = [trial.params["plan"] for trial in carried_out(make_problem(tmp_path / "other" / "out"), 2).frozen()]
    fake.fails = {f"trial 1: {plans[1]}": "the loss is not finite"}
    study = opened(problem, 2)
    study.rungs = []
    with study.joined():
        search(study, Budget(2, None), LocalLauncher())
    assert study.frozen()[1].state == TrialState.PRUNED
    assert study.frozen()[1].user_attrs["reason"] == "the loss is not finite"


def test_config_that_fails_ends_the_search(make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path) -> None:
    problem = make_problem(tmp_path / "out")
    fake.fails = {"trial 0: config": "no detector at 'nowhere'"}
    with pytest.raises(DfmsdError, match="the first trial, that of the config itself, has failed: no detector"):
        carried_out(problem, 2)
    fake.fails = {}
    assert [trial.state.is_finished() for trial in carried_out(problem, 2).frozen()] == [True, True]


def test_no_trial_begins_when_time_is_over(make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path) -> None:
    study = opened(make_problem(tmp_path / "out"), None, is_over=lambda: len(fake.begun) == 2)
    with study.joined():
        search(study, Budget(None, 1.0), LocalLauncher())
    assert len(study.frozen()) == 2


def test_study_of_another_space_or_folder_is_refused(make_problem: MakeProblem, tmp_path: Path) -> None:
    problem = make_problem(tmp_path / "out")
    storage = open_storage(f"journal:///{tmp_path}/study.log")
    SharedStudy(storage, problem, 1)
    SharedStudy(storage, problem, 5)
    other = replace(problem, space={key: value for key, value in problem.space.items() if key != "balance"})
    with pytest.raises(DfmsdError, match=r"its study out searches something else; space.balance differs: choose"):
        SharedStudy(storage, other, 1)
    other = replace(problem, config=replace(problem.config, seed=3))
    with pytest.raises(DfmsdError, match=r"searches something else; config.seed differs"):
        SharedStudy(storage, other, 1)
    elsewhere = replace(problem, folder=SearchFolder(tmp_path / "elsewhere" / "out"))
    with pytest.raises(DfmsdError, match=r"its study out belongs to another folder than .*elsewhere"):
        SharedStudy(storage, elsewhere, 1)


def test_run_folder_of_another_run_is_refused(make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path) -> None:
    problem = make_problem(tmp_path / "out")
    carried_out(problem, 1)
    (tmp_path / "out.log").unlink()
    with pytest.raises(DfmsdError, match=r"trials/0000 holds another run than that of trial 0, differing in seed"):
        carried_out(replace(problem, config=replace(problem.config, seed=3)), 1)


def test_run_that_is_still_stopping_is_waited_for(make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path) -> None:
    problem = make_problem(tmp_path / "out")
    held, released = Event(), []

    def save_and_end() -> None:
        with locked(problem.folder.trial(0)):
            held.set()
            time.sleep(0.5)
            released.append(time.monotonic())

    writer = Thread(target=save_and_end)
    writer.start()
    held.wait()
    study = opened(problem, 1)
    with study.joined():
        assert study.ask() is not None
    asked = time.monotonic()
    writer.join()
    assert asked > released[0]


def test_owner_of_each_trial_is_known(make_problem: MakeProblem, fake: FakeRuns, tmp_path: Path) -> None:
    study = carried_out(make_problem(tmp_path / "out"), 2)
    trials: list[FrozenTrial] = study.frozen()
    assert {trial.user_attrs[PROCESS] for trial in trials} == {study.process}
    assert re.fullmatch(r".+-\d+-[0-9a-f]{8}", study.process)
