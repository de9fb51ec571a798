"""Distillation never makes a GPU wait for the host."""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from tests.helpers.fixtures import STUDENT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfmsd.detectors import build_detector
from dfmsd.distillation.balance import GradientBalance
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.optimizer import build_optimizer

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.is_nonzero, aten.item, aten.nonzero, aten.masked_select, aten.equal}
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]


class Watch(TorchDispatchMode):
    """Record operations for whose result or shape the host has to wait.

    Args:
        on_host: tensors that are on the host also where there is a GPU.
    """

    def __init__(self, on_host: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.found: list[str] = []
        self.callers: list[str] = []
        self.paused = False
        self.on_host = list(on_host)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = func._overloadpacket in WAITING or self._boolean_mask(func, args)
        if waits and not self.paused and not any(args[0] is tensor for tensor in self.on_host):
            self.found.append(str(func))
            self.callers.append(self._caller())
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _caller() -> str:
        """Name the module that called torch."""
        names = (frame.f_globals["__name__"] for frame, _ in traceback.walk_stack(None))
        return next(name for name in names if name not in (__name__, "traceback") and not name.startswith("torch."))

    @staticmethod
    def _boolean_mask(func: Any, args: Any) -> bool:
        if func._overloadpacket not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            return False
        return any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))

    def leave_out(self, module: torch.nn.Module) -> None:
        """Ignore operations of this module."""

        def pause(*_: Any) -> None:
            self.paused = True

        def go_on(*_: Any) -> None:
            self.paused = False

        module.register_forward_pre_hook(pause)
        module.register_forward_hook(go_on)


@pytest.fixture
def watch() -> Iterator[Watch]:
    with Watch() as mode:
        yield mode


@pytest.mark.parametrize(
    "wait",
    [
        lambda value: value.sum().item(),
        lambda value: bool((value > 0).any()),
        lambda value: value[value > 0],
        lambda value: value.nonzero(),
        lambda value: value.__setitem__(value > 0, torch.ones(())),
    ],
)
def test_the_watch_finds_synchronizing_operations(watch: Watch, wait: Any) -> None:
    wait(torch.rand(4))
    assert len(watch.found) == 1


def test_the_watch_ignores_other_operations(watch: Watch) -> None:
    value = torch.rand(4)
    torch.where(value > 0, value, 0.0)[torch.tensor([0, 2])].topk(1)
    assert watch.found == []


@pytest.mark.parametrize("name", ["lamb", "adamw"])
@pytest.mark.parametrize(
    ("own", "arch"), [("fcos", "fcos"), ("fcos", "faster_rcnn"), ("retinanet", "retinanet"), ("retinanet", "fcos")]
)
def test_distillation_never_waits_for_the_device(own: str, arch: str, name: Literal["lamb", "adamw"]) -> None:
    """Nor does what a training step does after it."""
    student = build_detector(replace(STUDENT, arch=own), ("a",))
    teacher = FrozenTeacher(build_detector(replace(STUDENT, arch=arch, fpn_channels=32), ("a",)), "teacher")
    stages = [StageConfig(epochs=1), StageConfig(epochs=1, teacher="teacher")]
    loss = {"name": "dfmsd"}
    task = DistillationTask(student, stages, [[], [teacher]], loss, balance=0.5).train()
    task.enter_stage(1)
    (lesson,) = task.lessons
    assert lesson.balance is not None
    lesson.balance.calls = lesson.balance.first
    optimizer = build_optimizer(task.trainable, OptimConfig(name, 0.01))
    train_step(task, optimizer, Watch())  # the first one makes the optimizer's counters, which it keeps on the host
    counters = [*optimizer.param_groups, *optimizer.state.values()]  # LAMB's are in the groups, AdamW's in the state
    watch = Watch(on_host=[counter["step"] for counter in counters if "step" in counter])
    watch.leave_out(student)  # torchvision's own losses do wait
    named = train_step(task, optimizer, watch)
    assert {"mask/p3", "sfa/p3"} <= named.keys()
    assert watch.found == []


def train_step(task: DistillationTask, optimizer: torch.optim.Optimizer, watch: Watch) -> dict[str, torch.Tensor]:
    """Watch a training step, but not the backward pass of the detector's own losses."""
    with watch:
        named = task(torch.rand(2, 3, 64, 64), TARGETS)
        torch.stack([value for name, value in named.items() if not name.startswith("task/")]).sum().backward(
            retain_graph=True
        )
    torch.stack([value for name, value in named.items() if name.startswith("task/")]).sum().backward()
    with watch:
        torch.nn.utils.clip_grad_norm_(task.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
    return named


@pytest.mark.parametrize("arch", ["fcos", "retinanet", "faster_rcnn", "ssdlite"])
def test_where_a_detectors_own_losses_wait_torchvision_does(arch: str) -> None:
    student = build_detector(replace(STUDENT, arch=arch), ("a",)).train()
    student._to_library_targets = partial(boxes_unchecked, student)  # type: ignore[assignment]  # checked on a CPU only
    with Watch() as watch:
        student(torch.rand(2, 3, 128, 128), TARGETS)
    assert watch.callers
    assert {name.partition(".")[0] for name in watch.callers} == {"torchvision"}


def boxes_unchecked(student: Any, targets: list[Any]) -> list[Any]:
    return [{"boxes": target["boxes"], "labels": student.label_ids[target["labels"]]} for target in targets]


@pytest.mark.parametrize("boxes", [TARGETS, TARGETS[1:] * 2], ids=["boxes", "empty"])
def test_gfl_never_waits_for_the_device_either(boxes: list[Any]) -> None:
    """Assignment and losses, and LD over them."""
    student, big = (build_detector(replace(STUDENT, arch="gfl"), ("a",)) for _ in range(2))
    task = DistillationTask(student, [StageConfig(1, "big")], [[FrozenTeacher(big, "big")]], {"name": "ld"}).train()
    student._to_library_targets = list  # type: ignore[assignment]  # it checks boxes on a CPU
    with Watch() as watch:
        named = task(torch.rand(2, 3, 64, 64), boxes)
        torch.stack(list(named.values())).sum().backward()
    assert watch.found == []


def test_a_balance_does_not_wait_while_it_measures_either(watch: Watch) -> None:
    balance = GradientBalance(["mask"], ratio=1.0)
    feature = torch.rand(1, 2, 4, 4, requires_grad=True)
    balance({"mask/p3": feature.square().sum()}, feature.sum(), {"p3": feature})
    assert watch.found == []
    assert balance.calls == 1
    assert balance.norms.tolist() != [0.0, 0.0]


def test_the_count_of_a_balance_is_read_safely_from_a_file() -> None:
    first, second = (GradientBalance(["mask"], ratio=1.0, first=2) for _ in range(2))
    first.calls = 2
    first.norms.copy_(torch.tensor([6.0, 2.0]))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert not second.measures
    assert second.factor == 3.0
