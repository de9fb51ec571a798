from __future__ import annotations

import io
import os
import pty
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.engine.conftest import FinishedRun

from dfmsd.distillation.task import DistillationTask
from dfmsd.engine import dashboard
from dfmsd.engine.callbacks import EpochEnd
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.dashboard import Dashboard
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import distill
from dfmsd.errors import Stopped

MakeDistill = Callable[..., DistillConfig]
STEPS = 10
"""Of an epoch; a run has 4 epochs, of which the second and the last are evaluated."""
BATCH = SimpleNamespace(images=torch.zeros(8, 3, 4, 4))


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dashboard, "time", clock)
    return clock


@pytest.fixture
def module(small_task: DistillationTask) -> DistillationModule:
    return DistillationModule(small_task, OptimConfig())


@pytest.fixture
def shown(clock: Clock, tmp_path: Path) -> Dashboard:
    epoch_end = EpochEnd(tmp_path, [], every=2)  # type: ignore[arg-type]
    return Dashboard(Console(file=io.StringIO(), force_terminal=True), "runs/[x]", epoch_end, interval=3)


def trainer_at(step: int, *, lr: float = 0.125, world: int = 1) -> Any:
    """The trainer after so many steps, from 0."""
    optimizer = SimpleNamespace(param_groups=[{"lr": lr}])
    return SimpleNamespace(
        current_epoch=max(step - 1, 0) // STEPS,
        max_epochs=4,
        global_step=step,
        num_training_batches=STEPS,
        optimizers=[optimizer],
        world_size=world,
        should_stop=False,
        is_last_batch=step % STEPS == 0,
    )


def named(value: float) -> dict[str, Any]:
    """Losses of a step."""
    parts = {"loss": value, "mask/p3": value + 1, "mask/p4": value + 2, "pearson/p3": value / 8, "pearson/p4": value}
    return {"named": {name: torch.tensor(part) for name, part in parts.items()}}


def text(shown: Dashboard) -> str:
    """Return the screen at 80 columns."""
    console = Console(record=True, width=80, force_terminal=True, file=io.StringIO())
    console.print(shown.render())
    written = console.export_text()
    assert all(len(line) <= 80 for line in written.splitlines())
    return re.sub(r" +", " ", written)


def train(shown: Dashboard, module: Any, clock: Clock, steps: range, seconds: float = 0.5, **trainer: Any) -> None:
    """Run steps of the given duration."""
    for step in steps:
        clock.now += seconds
        at = trainer_at(step, **trainer)
        shown.on_train_batch_end(at, module, named(float(step)), BATCH, (step - 1) % STEPS)


def test_nothing_is_estimated_before_the_first_step(shown: Dashboard, module: DistillationModule) -> None:
    assert "status preparing" in text(shown)
    shown.on_train_start(trainer_at(0), module)
    seen = text(shown)
    assert "runs/[x]" in seen
    assert "0%" in seen
    assert "stage 1/2 teacher " in seen
    assert "epoch 1/4 step 0/40" in seen
    assert "AP -" in seen
    assert "loss -" in seen
    assert "ETA" not in seen
    assert "images/s" not in seen


def test_speed_and_remaining_time_include_steps_and_evaluations(
    shown: Dashboard, module: DistillationModule, clock: Clock
) -> None:
    shown.on_train_start(trainer_at(0), module)
    shown.on_train_epoch_start(trainer_at(0), module)
    train(shown, module, clock, range(1, 11), world=2)
    seen = text(shown)
    assert "25%" in seen
    assert "elapsed 0:00:05 ETA 0:00:15 32.0 images/s" in seen  # 30 steps of 0.5 s; 2 x 8 images each
    assert "status training" in seen
    shown.on_train_epoch_end(trainer_at(10), module)
    shown.on_train_epoch_start(trainer_at(10), module)
    train(shown, module, clock, range(11, 21))
    assert "status evaluating the student" in text(shown)
    assert "epoch 2/4 step 20/40" in text(shown)
    clock.now += 7.0
    shown.epoch_end.table.append([{"epoch": 1, "AP": 0.125}])
    shown.on_train_epoch_end(trainer_at(20), module)
    seen = text(shown)
    assert "status training" in seen
    assert "ETA 0:00:17" in seen  # 20 steps of 0.5 s and another evaluation of 7 s
    clock.now += 4.0
    assert "ETA 0:00:13" in text(shown)
    shown.on_train_epoch_start(trainer_at(20), module)
    train(shown, module, clock, range(21, 31), seconds=2.0)  # another stage is slower
    assert "ETA 0:00:27 4.0 images/s" in text(shown)


def test_losses_are_copied_every_n_steps(shown: Dashboard, module: DistillationModule, clock: Clock) -> None:
    shown.on_train_start(trainer_at(0), module)
    seen = []
    for step in range(1, 6):
        train(shown, module, clock, range(step, step + 1))
        seen.append(text(shown))
    first, second = ("loss 1 = mask 5 lr 0.125", "pearson 0.562"), ("loss 4 = mask 11 lr 0.125", "pearson 2.250")
    for screen, lines in zip(seen, (first, first, first, second, second), strict=True):
        assert all(line in screen for line in lines)


def test_several_teachers_are_numbered(shown: Dashboard, module: DistillationModule, clock: Clock) -> None:
    values = {"loss": 3.0, "T1.pearson/p3": 0.25, "T2.pearson/p3": 0.5, "T2.pearson/p4": 1.0}
    shown.on_train_start(trainer_at(0), module)
    clock.now += 1
    outputs = {"named": {name: torch.tensor(value) for name, value in values.items()}}
    shown.on_train_batch_end(trainer_at(1), module, outputs, BATCH, 0)
    assert "pearson 0.250 (T1) 0.750 (T2)" in text(shown)


def test_scores_from_before_a_resume_are_shown(shown: Dashboard, module: DistillationModule) -> None:
    scores: list[float | None] = [0.25, 0.5, None, 0.375]
    shown.epoch_end.table.append([{"epoch": epoch, "AP": score} for epoch, score in enumerate(scores)])
    shown.on_train_start(trainer_at(20), module)
    assert "AP last 37.5 best 50.0 (epoch 2)" in text(shown)


class Terminal:
    """A pseudo-terminal, and all that was written to it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w")
        self.console = Console(file=self.file, markup=False, emoji=False, width=100)
        self.bytes = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self.master, 4096)
            except OSError:  # the other end is closed
                return
            self.bytes += part

    def close(self) -> str:
        """Return the lines without colors and cursor movements, with single blanks."""
        self.file.close()
        self.reader.join(10)
        os.close(self.master)
        return re.sub(r" +", " ", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.bytes.decode()))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal()
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("dfmsd.engine.fit.console", terminal.console)
    monkeypatch.setattr("dfmsd.engine.run.console", terminal.console)
    yield terminal
    terminal.file.close()


@pytest.mark.slow
def test_the_dashboard_survives_messages_ctrl_c_and_resuming(
    terminal: Terminal, distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert terminal.console.is_terminal
    config = distill_config(tmp_path / "run")

    class Interrupting(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 3:
                signal.raise_signal(signal.SIGINT)
            super().on_train_batch_end(trainer, *args, **kwargs)

    outputs = sys.stdout, sys.stderr
    with monkeypatch.context() as patched:
        patched.setattr("dfmsd.engine.fit.StopOnInterrupt", Interrupting)
        with pytest.raises(Stopped):
            distill(config, allow_weak_teacher=True, check_images=1)
    assert (sys.stdout, sys.stderr) == outputs
    distill(config, resume=True)
    assert (sys.stdout, sys.stderr) == outputs
    seen = terminal.close()
    first, _, second = seen.partition("interrupted: ")
    assert "status stopped" in first
    assert "status finished" in second
    assert re.search(r"stage 1/2 teacher \S+/fcos", first)
    assert re.search(r"stage 2/2 teacher \S+/faster_rcnn", second)
    assert "step 3/6" in first
    assert "step 6/6" in second
    assert re.search(r"ETA 0:\d\d:\d\d [\d.]+ images/s", second)
    assert re.search(r"AP last [\d.]+ best [\d.]+ \(epoch \d\)", second)
    for epoch in (1, 2, 3):  # whole, on a line of its own
        assert re.search(rf"(?:^|\r)epoch {epoch}/3 stage \d AP [\d.]+ AP50 [\d.]+\r$", seen, flags=re.MULTILINE)
    assert terminal.bytes.count(b"\x1b[?25l") == terminal.bytes.count(b"\x1b[?25h") > 0  # the cursor is back


def test_without_a_terminal_there_is_no_dashboard(two_stage_run: FinishedRun) -> None:
    printed = two_stage_run.printed
    assert "ETA" not in printed
    assert "\x1b" not in printed
    assert len(re.findall(r"^epoch \d/3 ", printed, flags=re.MULTILINE)) == 3
