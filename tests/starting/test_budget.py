from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dfmsd.data import DataConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.starting.budget import epochs_within, hours_of

MS = {"student": 100.0, "1/update": 0.0, "load": 0.0, "decode": 0.0, "detect": 0.0}
SIZES: dict[str, Any] = {"train_images": 36_000, "val_images": 1, "workers": 0, "kept": 1.0}


def run_of(epochs: int, **teachers: Any) -> Any:
    """An estimate of a run of a tenth of an hour an epoch: 3,600 steps of 0.1 seconds."""
    config = DistillConfig(out="run", data=DataConfig(batch_size=10), stages=[StageConfig(epochs)])
    return SimpleNamespace(config=config, parts_ms=MS, sizes=SIZES, teachers=teachers)


def test_as_many_epochs_as_fit() -> None:
    assert hours_of(run_of(12), 12, 12) == pytest.approx(1.2)
    assert epochs_within(0.75, run_of(12)) == 7
    assert epochs_within(9.0, run_of(12)) == 12


def test_a_teacher_is_shortened_alike() -> None:
    found = run_of(10, teacher=run_of(20))
    assert hours_of(found, 10, 10) == pytest.approx(3.0)
    assert epochs_within(1.5, found) == 5
    assert hours_of(found, 5, 10) == pytest.approx(0.5 + 1.0)


def test_a_budget_below_an_epoch_is_refused() -> None:
    message = r"^hours: a single epoch takes 6\.0 min on this machine, more than 0\.05 h; allow more"
    with pytest.raises(DfmsdError, match=message):
        epochs_within(0.05, run_of(12))
