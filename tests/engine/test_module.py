from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfmsd.distill.stages import learning_rate_factor
from dfmsd.distill.task import DistillationTask
from dfmsd.engine import module as engine
from dfmsd.engine.config import OptimConfig
from dfmsd.engine.module import DistillationModule, correlations_as_mean
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch


@pytest.fixture
def module(task: DistillationTask) -> DistillationModule:
    return DistillationModule(task, OptimConfig(), seed=3)


def optimizers(module: DistillationModule, **optim: Any) -> tuple[torch.optim.Optimizer, Any]:
    module.optim = OptimConfig(**optim)
    module.trainer = SimpleNamespace(estimated_stepping_batches=30)
    made = module.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_optimiser_owns_student_and_layers_and_no_teacher(module: DistillationModule, name: str) -> None:
    optimizer, _ = optimizers(module, name=name, lr=0.25)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in module.parameters()}
    frozen = [p for teacher in module.task.every_teacher for p in teacher.detector.parameters()]
    assert frozen
    assert not owned & {id(p) for p in frozen}


def test_an_optimiser_that_forgets_a_parameter_is_refused(
    module: DistillationModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = engine.param_groups_weight_decay
    monkeypatch.setattr(engine, "param_groups_weight_decay", lambda model, decay: split(model, decay)[:1])
    with pytest.raises(DfmsdError, match=r"not in the optimiser: student\."):
        optimizers(module)


def test_biases_and_norms_do_not_decay(module: DistillationModule) -> None:
    optimizer, _ = optimizers(module, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim <= 1 or name.endswith(".bias") else 0.1), name


@pytest.mark.parametrize("schedule", ["continuous", "restart"])
def test_the_learning_rate_follows_the_stages(module: DistillationModule, schedule: Any) -> None:
    optimizer, scheduler = optimizers(module, lr=0.5, warmup=4, schedule=schedule)
    seen = []
    for _ in range(30):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [0.5 * learning_rate_factor(i, [2, 1], 10, warmup=4, schedule=schedule) for i in range(30)]
    assert seen == pytest.approx(expected)


def enter(module: DistillationModule, epoch: int, state: dict[Any, Any] | None = None) -> torch.Tensor:
    optimizer = SimpleNamespace(state={} if state is None else state)
    module.trainer = SimpleNamespace(current_epoch=epoch, optimizers=[optimizer], global_rank=0)
    module.on_train_epoch_start()
    return torch.rand(3)


def test_an_epoch_enters_its_stage_and_draws_its_own_numbers(module: DistillationModule) -> None:
    first, again, second = enter(module, 0), enter(module, 0), enter(module, 1)
    assert module.task.stage == 0
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    enter(module, 2)
    assert module.task.stage == 1


@pytest.mark.parametrize(
    ("schedule", "epoch", "kept"),
    [("restart", 0, True), ("restart", 1, True), ("restart", 2, False), ("continuous", 2, True)],
)
def test_a_restart_forgets_the_optimiser_state_where_a_stage_begins(
    module: DistillationModule, schedule: Any, epoch: int, kept: bool
) -> None:
    module.optim = OptimConfig(schedule=schedule)
    state = {"moments": 1.0}
    enter(module, epoch, state)
    assert bool(state) is kept


def test_checkpoints_hold_no_teacher(module: DistillationModule) -> None:
    names = module.state_dict().keys()
    assert all(
        name.startswith(("task.trainable.student.", "task.trainable.criteria.", "task.trainable.balance."))
        for name in names
    )


def test_a_batch_moves_with_its_targets(module: DistillationModule) -> None:
    target: Any = {"boxes": torch.zeros(1, 4), "labels": torch.zeros(1, dtype=torch.long)}
    batch = Batch(torch.zeros(1, 3, 8, 8), [target], [(8, 8)], [(1.0, 1.0)], [7], ["a"])
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, Batch)
    assert moved.images.is_meta
    assert moved.targets[0]["boxes"].is_meta
    assert moved.targets[0]["labels"].is_meta
    assert moved[2:] == batch[2:]


def test_correlations_are_averaged_over_levels_and_losses_are_not() -> None:
    assert correlations_as_mean({"T1.pearson/p3": 0.25, "T1.pearson/p4": 0.75, "T2.pearson/p3": 0.5}) == {
        "T1.pearson/p3": 0.125,
        "T1.pearson/p4": 0.375,
        "T2.pearson/p3": 0.5,
    }
    values = {"mask/p3": 1.0, "mask/p4": 3.0, "pearson/p3": 0.25, "pearson/p4": 0.75}
    scaled = correlations_as_mean({name: torch.tensor(value) for name, value in values.items()})
    assert {name: float(value) for name, value in scaled.items()} == {
        "mask/p3": 1.0,
        "mask/p4": 3.0,
        "pearson/p3": 0.125,
        "pearson/p4": 0.375,
    }
    assert correlations_as_mean({}) == {}
