from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.finite import FiniteCheck
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.optim import OptimConfig
from dfmsd.errors import DfmsdError

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def module(small_task: DistillationTask) -> DistillationModule:
    module = DistillationModule(small_task, OptimConfig())
    module.task.enter_stage(1)
    return module


def note(
    check: FiniteCheck, module: DistillationModule, step: int, gradient: float | None = 1.0, **values: float
) -> None:
    """Report a finished step to the check."""
    module.gradient_norm = None if gradient is None else torch.tensor(gradient)
    outputs = {"named": {name: torch.tensor(value) for name, value in {"loss": 1.0, **values}.items()}}
    trainer: Any = SimpleNamespace(global_step=step + 1, current_epoch=2, global_rank=0)
    check.on_train_batch_end(trainer, module, outputs, SimpleNamespace(image_ids=[step, 70]), 0)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_non_finite_term_ends_the_run_and_is_named(module: DistillationModule, tmp_path: Path, value: float) -> None:
    check = FiniteCheck(tmp_path)
    for step in range(4):
        note(check, module, step, **{"task/cls": 1.0, "mask/p3": 0.5})
    with pytest.raises(DfmsdError, match=r"^step 4 \(stage 2\): mask/p3 is not finite; lower optim.lr") as error:
        note(check, module, 4, loss=value, **{"task/cls": 1.0, "mask/p3": value})
    assert "\n" not in str(error.value)
    path = tmp_path / "failure" / "step-4.json"
    assert str(path) in str(error.value)
    assert json.loads(path.read_text()) == {
        "step": 4,
        "epoch": 2,
        "stage": 2,
        "not_finite": ["mask/p3"],
        "values": {"loss": str(value), "task/cls": 1.0, "mask/p3": str(value), "gradient": 1.0},
        "image_ids": [4, 70],
    }
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, which only Python reads


def test_a_step_of_several_batches_has_the_images_of_all(module: DistillationModule, tmp_path: Path) -> None:
    check = FiniteCheck(tmp_path)
    module.ends_step = False
    note(check, module, 0)
    module.ends_step = True
    with pytest.raises(DfmsdError, match=r"^step 1 "):
        note(check, module, 1, loss=NAN)
    assert json.loads((tmp_path / "failure" / "step-1.json").read_text())["image_ids"] == [0, 70, 1, 70]


def test_a_non_finite_gradient_or_sum_is_named(module: DistillationModule, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"step 0 \(stage 2\): gradient is not finite"):
        note(FiniteCheck(tmp_path), module, 0, gradient=INF)
    with pytest.raises(DfmsdError, match=r"step 1 \(stage 2\): loss is not finite"):
        note(FiniteCheck(tmp_path), module, 1, gradient=None, loss=INF)


def test_values_are_checked_every_n_steps_and_before_every_checkpoint(
    module: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    check = FiniteCheck(tmp_path, interval=3)
    note(check, module, 0, loss=NAN)
    note(check, module, 1)
    with pytest.raises(DfmsdError, match="step 0"):
        check.state_dict()
    note(check, module, 2, loss=NAN)
    note(check, module, 3)
    with pytest.raises(DfmsdError, match="step 2"):
        note(check, module, 4)
    note(check, module, 5, loss=NAN)
    with pytest.raises(DfmsdError, match="step 5"):
        check.on_train_epoch_end(None, module)  # type: ignore[arg-type]


def test_skipped_steps_are_counted_across_a_resume(
    module: DistillationModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check = FiniteCheck(tmp_path, skip=2)
    module.skipped = True
    with caplog.at_level(logging.WARNING, "dfmsd"):
        note(check, module, 0, **{"mask/p3": NAN})
    assert "step 0 (stage 2): mask/p3 is not finite; skipped, 1 of at most 2; see " in caplog.text
    resumed = FiniteCheck(tmp_path, skip=2)
    resumed.load_state_dict(check.state_dict())
    note(resumed, module, 1)  # where the value is another process's
    module.skipped = False
    note(resumed, module, 2)
    module.skipped = True
    with pytest.raises(DfmsdError, match=r"step 3 .*; 2 such steps were skipped before; "):
        note(resumed, module, 3, gradient=NAN)


def test_each_process_writes_its_own_failure_file(module: DistillationModule, tmp_path: Path) -> None:
    check = FiniteCheck(tmp_path)
    check.on_train_start(SimpleNamespace(global_rank=3), module)  # type: ignore[arg-type]
    with pytest.raises(DfmsdError, match="step-0-rank-3"):
        note(check, module, 0, loss=NAN)
    assert [path.name for path in (tmp_path / "failure").iterdir()] == ["step-0-rank-3.json"]
