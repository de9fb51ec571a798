from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.few_neurons import FewNeurons
from torch import nn

from dfmsd.distillation.stages import learning_rate_factor
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine import optimizer
from dfmsd.engine.module import DistillationModule, correlations_as_mean
from dfmsd.engine.optim import OptimConfig
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch


@pytest.fixture
def module(small_task: DistillationTask) -> DistillationModule:
    return DistillationModule(small_task, OptimConfig("lamb", 1e-3), seed=3)


def optimizers(module: DistillationModule, **optim: Any) -> tuple[torch.optim.Optimizer, Any]:
    module.optim = OptimConfig(**{"name": "lamb", "lr": 1e-3, **optim})
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(train_dataloader=lambda: range(10)))
    made = module.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
def test_the_optimizer_holds_student_and_layers_but_no_teacher(module: DistillationModule, name: str) -> None:
    optimizer, _ = optimizers(module, name=name, lr=0.25)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in module.parameters()}
    frozen = [p for teacher in module.task.every_teacher for p in teacher.detector.parameters()]
    assert frozen
    assert not owned & {id(p) for p in frozen}


def test_an_optimizer_that_lacks_a_parameter_is_refused(
    module: DistillationModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = optimizer.param_groups_weight_decay
    monkeypatch.setattr(optimizer, "param_groups_weight_decay", lambda model, decay: split(model, decay)[:1])
    with pytest.raises(DfmsdError, match=r"not in the optimizer: student\."):
        optimizers(module)


def test_biases_and_norms_do_not_decay(module: DistillationModule) -> None:
    optimizer, _ = optimizers(module, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim <= 1 or name.endswith(".bias") else 0.1), name


def test_the_backbone_has_its_own_learning_rate(module: DistillationModule, monkeypatch: pytest.MonkeyPatch) -> None:
    student = module.task.student
    assert isinstance(student, FewNeurons)
    monkeypatch.setattr(FewNeurons, "backbone_layers", lambda self: [self.stem])
    optimizer, scheduler = optimizers(module, lr=0.5, backbone_lr=0.1, warmup=4, weight_decay=0.1)
    for step in range(3):
        lr = 0.5 * learning_rate_factor(step, [2, 1], 10, warmup=4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)  # which is logged
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        backbone = {id(p) for p in student.stem.parameters()}
        assert all(rate == pytest.approx(lr * (0.1 if key in backbone else 1)) for key, rate in rates.items())
        assert [decays[id(p)] for p in (student.stem.weight, student.stem.bias)] == [0.1, 0.0]
        optimizer.step()
        scheduler.step()


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


def enter(module: DistillationModule, epoch: int, state: dict[Any, Any] | None = None) -> None:
    optimizer = SimpleNamespace(state={} if state is None else state, param_groups=[])
    module.trainer = SimpleNamespace(current_epoch=epoch, optimizers=[optimizer], global_rank=0)
    module.on_train_epoch_start()


def test_an_epoch_enters_its_stage(module: DistillationModule) -> None:
    stages = []
    for epoch in range(3):
        enter(module, epoch)
        stages.append(module.task.stage)
    assert stages == [0, 0, 1]


def test_a_run_resumed_within_a_stage_does_not_start_it_again(
    module: DistillationModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[tuple[int, bool]] = []
    monkeypatch.setattr(module.task, "enter_stage", lambda index, *, begins: entered.append((index, begins)))
    module.trainer = SimpleNamespace(current_epoch=2)
    module.on_train_start()
    assert entered == [(1, False)]


def draw(module: DistillationModule, epoch: int, batch: int, rank: int = 0) -> tuple[float, ...]:
    module.trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, num_training_batches=9)
    module.on_train_batch_start(None, batch)  # type: ignore[arg-type]
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_random_numbers_depend_only_on_epoch_batch_and_rank(module: DistillationModule) -> None:
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1)]
    drawn = [draw(module, *place) for place in places]
    torch.rand(7), np.random.rand(7), random.random()
    assert [draw(module, *place) for place in reversed(places)] == drawn[::-1]
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == len(places)
    module.seed += 1
    assert not set(draw(module, 0, 0)) & set(drawn[0])


class Poisoned(nn.Module):
    """A task with every kind of state, whose loss can be poisoned, or its gradient alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.stage = 0

    def forward(self, images: torch.Tensor, *_: Any) -> dict[str, torch.Tensor]:
        value = self.net(images.flatten(1)[:, :3]).square().mean()
        return {"task/box": value, "mask/p3": torch.sqrt(value * 0.0) if images.amax() > 5 else value * 0.5}

    def diagnostics(self) -> dict[str, torch.Tensor]:
        return {}

    def share_balance(self, share: float) -> None:
        assert share == 1  # nothing falls in these tests


def step(module: DistillationModule, optimizer: torch.optim.Optimizer, *batches: torch.Tensor) -> None:
    """What the trainer does in a step."""
    optimizer.zero_grad()
    for index, images in enumerate(batches):
        module.on_train_batch_start(None, index)  # type: ignore[arg-type]
        assert module.ends_step == (index + 1 == len(batches))
        loss = module.training_step(Batch(images, [], [], [], []), index)["loss"]
        (loss / module.per_step).backward()
    module.configure_gradient_clipping(optimizer, 10.0)
    optimizer.step()


def poisoned_module(skip: bool, scaler: object | None = None, per_step: int = 1) -> DistillationModule:
    torch.manual_seed(0)
    module = DistillationModule(Poisoned(), OptimConfig(lr=1e-3), skip_nonfinite=skip, per_step=per_step)  # type: ignore[arg-type]
    module.trainer = SimpleNamespace(
        current_epoch=0,
        global_rank=0,
        global_step=0,
        num_training_batches=9,
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
    )
    return module


GOOD = torch.linspace(-1, 1, 4 * 3 * 4 * 4).view(4, 3, 4, 4)


@pytest.mark.parametrize("bad", [GOOD / 0.0, GOOD * 10], ids=["the loss is not finite", "its gradient alone is not"])
def test_a_skipped_step_changes_nothing(bad: torch.Tensor) -> None:
    module, reference = poisoned_module(skip=True), poisoned_module(skip=True)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.1, weight_decay=0.1) for one in (module, reference)]
    for images in (GOOD, bad, GOOD * 0.5):
        step(module, optimizers[0], images)
        assert module.skipped == (images is bad)
    for images in (GOOD, GOOD * 0.5):
        step(reference, optimizers[1], images)
    for name, value in reference.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    for ours, theirs in zip(*(one.state_dict()["state"].values() for one in optimizers), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("batches", [(GOOD / 0.0, GOOD), (GOOD, GOOD * 10)])
def test_a_skipped_step_of_two_batches_changes_nothing(batches: tuple[torch.Tensor, torch.Tensor]) -> None:
    module = poisoned_module(skip=True, per_step=2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    step(module, optimizer, GOOD, GOOD * 0.5)
    assert not module.skipped
    before = copy.deepcopy(module.state_dict())
    step(module, optimizer, *batches)
    assert module.skipped
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_without_skipping_a_bad_step_is_taken() -> None:
    module = poisoned_module(skip=False)
    step(module, torch.optim.SGD(module.parameters(), lr=0.1), GOOD * 10)
    assert not module.skipped
    assert module.gradient_norm is not None
    assert module.gradient_norm.isnan()


def test_overflows_are_left_to_the_loss_scaler() -> None:
    module = poisoned_module(skip=True, scaler=object())
    step(module, torch.optim.SGD(module.parameters(), lr=0.1), GOOD * 10)
    assert module.gradient_norm is None
    assert not module.skipped


def test_gradients_are_clipped_as_in_torch() -> None:
    module = poisoned_module(skip=False)
    step(module, torch.optim.SGD(module.parameters(), lr=0.0), GOOD)
    before = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.cat([value.flatten() for value in before]))
    assert module.gradient_norm is not None
    assert float(module.gradient_norm) == pytest.approx(float(norm), rel=1e-5)
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters(), lr=0.0), float(norm) / 4)
    for parameter, value in zip(module.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, value / 4, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "epoch", "kept"),
    [("restart", 0, True), ("restart", 1, True), ("restart", 2, False), ("continuous", 2, True)],
)
def test_a_restart_clears_the_optimizer_state_at_a_new_stage(
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
