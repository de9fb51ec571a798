from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfmsd.engine import callbacks
from dfmsd.engine.callbacks import EpochEnd
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.run import train
from dfmsd.engine.stopping import Patience, TimeLimit
from dfmsd.errors import INTERRUPTED, Stopped
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.runfolder import RunFolder
from dfmsd.utils.durations import HOUR

MakeTrain = Callable[..., TrainConfig]


def epochs_with(aps: list[float | None], patience: int, first: int = 0, every: int = 1) -> tuple[int, list[str]]:
    """Return how many epochs a run takes whose evaluations find these AP, and what is printed."""
    lines: list[str] = []
    end = EpochEnd.__new__(EpochEnd)
    end.evaluated = 0
    trainer: Any = SimpleNamespace(max_epochs=len(aps), current_epoch=0, should_stop=False, is_global_zero=True)
    callback = Patience(patience, first, end, lines.append)
    callback.best_after = first
    for epoch, ap in enumerate(aps):
        trainer.current_epoch = epoch
        if (epoch + 1) % every == 0:
            end.metrics, end.evaluated = {"AP": ap}, epoch + 1  # type: ignore[typeddict-item]
        callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        if trainer.should_stop:
            return epoch + 1, lines
    return len(aps), lines


def test_a_run_ends_when_ap_has_not_risen_for_as_many_epochs() -> None:
    done, lines = epochs_with([0.1, 0.3, 0.3, 0.2, 0.4, 0.5], patience=2)
    assert done == 4
    assert lines == ["ended after epoch 4 of 6: AP has not risen above 30.0 since epoch 2 (patience: 2)"]


def test_a_better_ap_renews_the_patience() -> None:
    assert epochs_with([0.1, 0.0, 0.2, 0.1, 0.3, 0.2], patience=2) == (6, [])


def test_patience_counts_epochs_and_ends_at_an_evaluation() -> None:
    assert epochs_with([0.1, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1], patience=3, every=2)[0] == 6


def test_the_ap_of_earlier_stages_does_not_count() -> None:
    assert epochs_with([0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.2, 0.1, 0.1], patience=2, first=3)[0] == 8


def test_the_last_epoch_ends_no_run_early() -> None:
    assert epochs_with([0.2, 0.1, 0.1], patience=2) == (3, [])


def test_without_any_ap_the_patience_ends_too() -> None:
    assert epochs_with([None, None, None], patience=2)[0] == 2


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Make the evaluations of runs find these AP, in turn."""

    def find(aps: list[float]) -> None:
        values = iter(aps)
        monkeypatch.setattr(callbacks, "evaluate", lambda *args: {**evaluate(*args), "AP": next(values)})

    return find


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def epochs(run: Path) -> list[int]:
    with RunFolder(run).epochs_file.open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_a_run_without_patience_is_finished_and_continues_with_more(
    train_config: MakeTrain,
    tmp_path: Path,
    measured: Callable[[list[float]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured([0.3, 0.2, 0.1, 0.1])
    whole = train(train_config(tmp_path / "whole", epochs=4))
    measured([0.3, 0.2, 0.1, 0.1])
    config = train_config(tmp_path / "run", epochs=4, patience=1)
    first = train(config)
    assert first.metrics["AP"] == 0.2
    assert json.loads(RunFolder(first.run).metrics_file.read_text())["AP"] == 0.2
    assert "ended after epoch 2 of 4: AP has not risen" in printed(capsys)
    again = train(config, resume=True)  # there is nothing left to do
    assert again.metrics["AP"] == 0.2
    assert epochs(first.run) == [0, 1]
    config.patience = 3
    continued = train(config, resume=True)
    assert epochs(continued.run) == [0, 1, 2, 3]
    expected = whole.student.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in continued.student.state_dict().items())


def test_a_finished_run_that_continues_is_unfinished(
    train_config: MakeTrain, tmp_path: Path, measured: Callable[[list[float]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured([0.3, 0.2, 0.1, 0.1])
    config = train_config(tmp_path / "run", epochs=4, patience=1)
    train(config)

    class Stopping(StopOnInterrupt):
        def on_train_batch_start(self, *_: Any) -> None:
            self.asked = INTERRUPTED

    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Stopping)
    config.patience = 3
    with pytest.raises(Stopped):
        train(config, resume=True)
    assert not RunFolder(tmp_path / "run").finished


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every epoch take an hour."""
    hours = [0.0]
    start, end = TimeLimit.on_train_start, TimeLimit.on_train_epoch_end

    def passing(limit: TimeLimit, *args: Any) -> None:
        hours[0] += 1
        end(limit, *args)

    def starting(limit: TimeLimit, *args: Any) -> None:
        hours[0] = limit._offset / HOUR
        start(limit, *args)

    monkeypatch.setattr(TimeLimit, "time_elapsed", lambda *_: HOUR * hours[0])
    monkeypatch.setattr(TimeLimit, "on_train_epoch_end", passing)
    monkeypatch.setattr(TimeLimit, "on_train_start", starting)


@pytest.mark.usefixtures("clock")
def test_a_run_ends_before_the_epoch_that_exceeds_its_time(
    train_config: MakeTrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(train_config(tmp_path / "whole", epochs=4, eval_every=4))
    config = train_config(tmp_path / "run", epochs=4, eval_every=4, max_hours=2.5)
    ended = train(config)
    assert "ended after epoch 2 of 4: 2.0 h have passed" in printed(capsys)
    assert epochs(ended.run) == [1]  # evaluated, as the last one
    again = train(config, resume=True)
    assert epochs(again.run) == [1]
    assert again.metrics == ended.metrics
    config.max_hours = 9.0
    continued = train(config, resume=True)
    assert epochs(continued.run) == [1, 3]
    expected = whole.student.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in continued.student.state_dict().items())


def test_one_epoch_is_trained_in_any_case(train_config: MakeTrain, tmp_path: Path) -> None:
    assert epochs(train(train_config(tmp_path / "run", epochs=3, max_hours=1e-9)).run) == [0]


@pytest.mark.usefixtures("clock")
def test_limits_that_a_resumed_run_is_given_count_from_then_on(
    train_config: MakeTrain, tmp_path: Path, measured: Callable[[list[float]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(StopOnInterrupt):
        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            self.asked = INTERRUPTED * (trainer.current_epoch == 2)

    for name, value, last in (("patience", 2, 5), ("max_hours", 2.5, 4)):
        config = train_config(tmp_path / name, epochs=9)
        measured([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
        with monkeypatch.context() as patch:
            patch.setattr("dfmsd.engine.fit.StopOnInterrupt", Stopping)
            with pytest.raises(Stopped):
                train(config)
        setattr(config, name, value)
        assert epochs(train(config, resume=True).run)[-1] == last
