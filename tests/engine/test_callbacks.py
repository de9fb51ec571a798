from __future__ import annotations

import csv
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfmsd.distillation.task import DistillationTask
from dfmsd.engine import callbacks
from dfmsd.engine.callbacks import EpochEnd
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.steplog import CsvTable, StepLog
from dfmsd.errors import INTERRUPTED, PREEMPTED
from dfmsd.evaluation.evaluate import Metrics, percent

NO_OBJECTS = Metrics(AP=None, AP50=None, AP75=None, APs=None, APm=None, APl=None, per_class={"disc": None})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trainer_at(step: int = 0, epoch: int = 0, max_epochs: int = 3, lr: float = 0.125) -> Any:
    """The parts of a trainer that the callbacks use, with one process."""
    strategy = SimpleNamespace(broadcast=lambda value: value, reduce_boolean_decision=lambda value, all: value)
    optimizer = SimpleNamespace(param_groups=[{"lr": lr}])
    return SimpleNamespace(
        global_step=step,
        current_epoch=epoch,
        max_epochs=max_epochs,
        should_stop=False,
        is_global_zero=True,
        optimizers=[optimizer],
        strategy=strategy,
        loggers=[],
    )


@pytest.fixture
def module(small_task: DistillationTask) -> DistillationModule:
    return DistillationModule(small_task, OptimConfig())


@pytest.fixture
def real_module(task: DistillationTask) -> DistillationModule:
    """One whose student can be saved."""
    return DistillationModule(task, OptimConfig())


def test_a_table_grows_by_rows_and_by_columns(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "t.csv")
    assert table.rows() == []
    table.append([{"step": 0, "a": 1}])
    table.append([{"step": 1, "b": 2}, {"step": 2, "a": 3, "b": 4}])
    assert read(tmp_path / "t.csv") == [
        {"step": "0", "a": "1", "b": ""},
        {"step": "1", "a": "", "b": "2"},
        {"step": "2", "a": "3", "b": "4"},
    ]
    again = CsvTable(tmp_path / "t.csv")
    again.append([{"step": 3, "b": 5}])
    assert again.rows()[-1] == {"step": "3", "a": "", "b": "5"}
    assert len(again.rows()) == 4


def test_a_resumed_table_drops_repeated_steps_and_incomplete_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = CsvTable(path)
    table.append([{"step": step, "a": step * step} for step in range(14)])
    path.write_bytes(path.read_bytes()[: -len("3,169\r\n")])  # the last row now reads "1", as if it were step 1
    resumed = CsvTable(path)
    resumed.truncate("step", 12)
    resumed.append([{"step": 12, "a": 0}])
    assert [int(row["step"]) for row in read(path)] == list(range(13))
    assert not list(tmp_path.glob("*.part"))


def test_truncating_a_missing_table_does_nothing(tmp_path: Path) -> None:
    CsvTable(tmp_path / "t.csv").truncate("step", 3)
    assert not (tmp_path / "t.csv").exists()


def note(log: StepLog, module: DistillationModule, step: int, **named: float) -> None:
    """Report a finished step to the log."""
    outputs = {"named": {name: torch.tensor(value) for name, value in named.items()}}
    log.on_train_batch_start(trainer_at(step, lr=0.125 / (step + 1)), module, None, 0)
    log.on_train_batch_end(trainer_at(step + 1, lr=99.0), module, outputs, None, 0)  # by now it is the next step's


def test_steps_are_written_in_batches_and_at_the_end_of_an_epoch(module: DistillationModule, tmp_path: Path) -> None:
    log = StepLog(tmp_path, interval=3)
    for step in range(4):
        note(log, module, step, loss=1.0 + step, mask=0.5)
        assert len(CsvTable(tmp_path / "log.csv").rows()) == (3 if step >= 2 else 0)
    log.on_train_epoch_end(trainer_at(4), module)
    assert read(tmp_path / "log.csv")[3] == {
        "step": "3",
        "epoch": "0",
        "stage": "1",
        "lr": "0.03125",
        "loss": "4",
        "mask": "0.5",
    }


def test_a_checkpoint_has_all_its_steps_in_the_log(module: DistillationModule, tmp_path: Path) -> None:
    log = StepLog(tmp_path)
    for step in range(3):
        note(log, module, step, loss=1.0)
    log.on_save_checkpoint(trainer_at(3), module, {})
    assert [row["step"] for row in read(tmp_path / "log.csv")] == ["0", "1", "2"]


def test_a_crash_leaves_the_steps_before_it_in_the_log(module: DistillationModule, tmp_path: Path) -> None:
    log = StepLog(tmp_path)
    note(log, module, 0, loss=1.0)
    log.on_exception(trainer_at(1), module, RuntimeError("out of memory"))
    assert [row["step"] for row in read(tmp_path / "log.csv")] == ["0"]


def test_an_epoch_without_objects_has_no_ap(
    real_module: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "evaluate", lambda *_: NO_OBJECTS)
    logged: dict[str, float] = {}
    monkeypatch.setattr(real_module, "log", lambda name, value, **_: logged.update({name: value}))
    lines: list[str] = []
    end = EpochEnd(tmp_path, None, every=1, print_line=lines.append)  # type: ignore[arg-type]
    end.on_train_epoch_end(trainer_at(2), real_module)
    assert lines == ["epoch 1/3  stage 1  AP -  AP50 -"]
    assert "AP" not in logged
    assert read(tmp_path / "epochs.csv")[0]["AP"] == ""
    assert (tmp_path / "student.safetensors").exists()


def test_evaluation_follows_every_nth_and_the_last_epoch(
    real_module: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "evaluate", lambda *_: {**NO_OBJECTS, "AP": 0.25, "AP50": 0.5})
    monkeypatch.setattr(real_module, "log", lambda *_, **__: None)
    end = EpochEnd(tmp_path, None, every=3, print_line=lambda _: None)  # type: ignore[arg-type]
    for epoch in range(5):
        end.on_train_epoch_end(trainer_at(2 * epoch + 2, epoch, max_epochs=5), real_module)
    assert [(row["epoch"], row["step"], row["AP"]) for row in read(tmp_path / "epochs.csv")] == [
        ("2", "6", "0.25"),
        ("4", "10", "0.25"),
    ]
    resumed = EpochEnd(tmp_path, None, every=3)  # type: ignore[arg-type]
    resumed.load_state_dict(end.state_dict())
    assert resumed.metrics == end.metrics
    resumed.on_train_start(trainer_at(6, epoch=3), real_module)
    assert [row["epoch"] for row in read(tmp_path / "epochs.csv")] == ["2"]


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.0"), (0.12345, "12.3"), (1.0, "100.0")])
def test_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, PREEMPTED), (signal.SIGUSR1, PREEMPTED)],
)
def test_signals_are_recorded_and_a_second_ctrl_c_is_not_handled(
    module: DistillationModule, number: signal.Signals, status: int
) -> None:
    assert (INTERRUPTED, PREEMPTED) == (130, 75)
    former = signal.getsignal(number)
    stop = StopOnInterrupt()
    stop.on_train_start(trainer_at(), module)
    assert stop.asked == 0
    signal.raise_signal(number)
    assert stop.asked == status
    assert (signal.getsignal(number) is former) == (number == signal.SIGINT)
    stop.on_train_end(trainer_at(), module)
    assert signal.getsignal(number) is former


@pytest.mark.parametrize("ending", ["on_train_end", "on_exception"])
def test_signal_handlers_are_restored_however_the_run_ends(module: DistillationModule, ending: str) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = [signal.getsignal(number) for number in numbers]
    stop = StopOnInterrupt()
    stop.on_train_start(trainer_at(), module)
    assert all(signal.getsignal(number) is not before for number, before in zip(numbers, former, strict=True))
    getattr(stop, ending)(trainer_at(), module, *([RuntimeError()] if ending == "on_exception" else []))
    assert [signal.getsignal(number) for number in numbers] == former


def test_a_run_in_another_thread_installs_no_handlers(module: DistillationModule) -> None:
    former, failures = signal.getsignal(signal.SIGINT), []

    def train() -> None:
        try:
            stop = StopOnInterrupt()
            stop.on_train_start(trainer_at(), module)
            stop.on_train_end(trainer_at(), module)
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failures
    assert signal.getsignal(signal.SIGINT) is former
