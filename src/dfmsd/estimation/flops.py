"""What a training step computes and keeps, counted while its parts run once: no clock, no estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dfmsd.distillation.task import DistillationTask
from dfmsd.types import Batch, FeaturePyramid

aten = torch.ops.aten
ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}


@dataclass(frozen=True)
class Cost:
    """What one part of a step costs, for a whole batch.

    Attributes:
        forward: FLOPs of convolutions and matrix products, 2 per multiply-add.
        backward: the same, of the backward pass.
        elementwise: operations of everything else, 1 per element that a kernel reads or writes, both passes.
        parameter_bytes: weights.
        kept_bytes: what the forward pass makes and keeps for the backward pass; its inputs and weights are left out.
    """

    forward: int = 0
    backward: int = 0
    elementwise: int = 0
    parameter_bytes: int = 0
    kept_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class LevelCost:
    """One paired level: its alignment, and the method, whose products are the generation blocks."""

    align: Cost
    method: Cost


@dataclass(frozen=True)
class StageCost:
    """What a step of one stage costs, by part, for one batch.

    Attributes:
        student: its whole training step: forward, losses, backward.
        teacher: forward to the neck of every teacher that the stage asks; None without one.
        levels: the loss by student level; empty without teacher.
        student_pyramid_bytes: all levels.
        teacher_pyramid_bytes: the paired levels.
    """

    student: Cost
    teacher: Cost | None = None
    levels: Mapping[str, LevelCost] = field(default_factory=dict)
    student_pyramid_bytes: int = 0
    teacher_pyramid_bytes: int = 0

    @property
    def loss(self) -> Cost:
        """All levels together."""
        return sum((part for level in self.levels.values() for part in (level.align, level.method)), Cost())


def count_stage(task: DistillationTask, batch: Batch) -> StageCost:
    """Run every part of the task's current stage once and count.

    Args:
        task: in training mode, on the batch's device, as are its teachers.
        batch: images and boxes.
    """
    pyramid: FeaturePyramid = {}

    def student_step() -> list[Tensor]:
        found, _, losses = task.student_pass(batch.images, batch.targets)
        pyramid.update(found)
        return list(losses.values())

    student = count(student_step, task.student)
    student_bytes = _bytes(pyramid.values())
    used = task.levels_in_use(task.stage)
    if not used:
        return StageCost(student, student_pyramid_bytes=student_bytes)
    teachers = [count(partial(teacher.features, batch.images), teacher.detector) for teacher in used]
    paired = [teacher.features(batch.images)[level.name] for teacher, levels in used.items() for level in levels]
    return StageCost(student, sum(teachers, Cost()), _count_levels(task, batch), student_bytes, _bytes(paired))


def count(run: Callable[[], object], module: nn.Module, inputs: object = ()) -> Cost:
    """Count what a call costs, and the backward pass of what it gives; the weights' gradients are dropped.

    Args:
        run: gives tensors in any nesting; the backward pass starts at those that require a gradient.
        module: whose weights are used.
        inputs: tensors, in any nesting, that are there anyhow.
    """
    given = {
        value.untyped_storage().data_ptr() for value in (*module.parameters(), *module.buffers(), *_tensors(inputs))
    }
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    elements, forward, backward = _Elements(), _products(), _products()
    with saved_tensors_hooks(keep, lambda value: value), elements, forward:
        outputs = [value for value in _tensors(run()) if value.grad_fn is not None]
    if outputs:
        upstream = [torch.ones_like(value) for value in outputs]
        with elements, backward:
            torch.autograd.backward(outputs, upstream)
    module.zero_grad()
    return Cost(
        forward.get_total_flops(),
        backward.get_total_flops() if outputs else 0,
        elements.count,
        _bytes(module.parameters()),
        sum(kept.values()),
    )


def record_calls(
    task: DistillationTask, batch: Batch, modules: Iterable[nn.Module]
) -> dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Run a step of the current stage and give the arguments that modules were called with, cut off from its graph."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = tree_map(_as_leaf, (args, kwargs))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        task(batch.images, batch.targets)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _count_levels(task: DistillationTask, batch: Batch) -> dict[str, LevelCost]:
    """Count alignment and method of each level on the inputs that a real step gives them."""
    criteria = [lesson.criterion for lesson in task.lessons]
    calls = record_calls(task, batch, chain.from_iterable((*each.align, *each.methods) for each in criteria))
    levels: dict[str, LevelCost] = {}
    parts = chain.from_iterable(zip(each.pairs, each.align, each.methods, strict=True) for each in criteria)
    for pair, align, method in parts:
        there = [calls[align][0], calls[method][0][1:]]  # not the aligned feature, unless that is the student's own
        costs = (_count_call(part, *calls[part], there) for part in (align, method))
        before = levels.get(pair.student.name, LevelCost(Cost(), Cost()))  # of another method or teacher
        levels[pair.student.name] = LevelCost(
            *(old + new for old, new in zip((before.align, before.method), costs, strict=True))
        )
    return levels


def _count_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: object) -> Cost:
    return count(partial(module, *args, **kwargs), module, inputs)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _as_leaf(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _bytes(tensors: Any) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


class _Elements(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the elements that kernels other than convolutions and matrix products go through."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if not func.is_view and packet not in flop_registry and packet not in ALLOCATIONS:
            self.count += max((value.numel() for value in _tensors((args, out))), default=0)
        return out


def _products() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={aten.convolution_backward: _convolution_backward_flops})


def _convolution_backward_flops(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Any, **_: Any
) -> int:
    """Count as many for each of the two gradients that are asked for as the forward pass takes.

    torch's own formula multiplies the weight's gradient of a grouped convolution by the number of groups.
    """
    transposed, mask = rest[4], rest[7]
    positions = math.prod((x if transposed else grad)[2:])
    gradients: int = sum(mask[:2])
    return 2 * x[0] * positions * math.prod(weight) * gradients
