"""Runs that are stopped, and what they leave in their folders."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import Result
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.run import distill

Weights = dict[str, Tensor]
STUDENT_PREFIX = "task.trainable.student.model."


def quietly(config: DistillConfig, **options: Any) -> Result:
    """Distil with the untrained teachers."""
    return distill(config, allow_weak_teacher=True, check_images=1, **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def delivered(run: Path | str) -> Weights:
    return load_file(Path(run) / "student.safetensors")


def in_checkpoint(path: Path) -> Weights:
    state: Weights = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix(STUDENT_PREFIX): v for name, v in state.items() if name.startswith(STUDENT_PREFIX)}


def identical(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def stopping(at: int, how: Callable[[], None]) -> type[StopOnInterrupt]:
    """Return a callback that calls ``how`` after step ``at``, counted from 1."""

    class Stopping(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == at:
                how()
            super().on_train_batch_end(trainer, *args, **kwargs)

    return Stopping


def kill() -> None:
    raise RuntimeError("the power went off")


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)
