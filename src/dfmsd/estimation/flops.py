"""Exact FLOPs and saved bytes of a training step, counted while its parts run once."""

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

from dfmsd.distillation.passes import run_student, run_teacher
from dfmsd.distillation.task import DistillationTask
from dfmsd.types import Batch, FeaturePyramid

aten = torch.ops.aten
ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}


@dataclass(frozen=True)
class Cost:
    """Cost of one part of a step, for a whole batch.

    Attributes:
        forward: FLOPs of convolutions and matrix products, 2 per multiply-add.
        backward: the same for the backward pass.
        elementwise: all other operations in both passes, 1 per element that a kernel reads or writes.
        parameter_bytes: size of the weights.
        kept_bytes: size of the tensors saved for the backward pass, without inputs and weights.
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
    """Cost of one paired level: its alignment and its method, including the generation blocks."""

    align: Cost
    method: Cost


@dataclass(frozen=True)
class StageCost:
    """Cost of a step of one stage, for one batch.

    Attributes:
        student: forward, losses and backward of the student; in a stage without labels up to its pyramid.
        teacher: forward to the neck of all teachers of the stage; None without a teacher.
        levels: the loss by student level; empty without a teacher.
        student_pyramid_bytes: size of all levels.
        teacher_pyramid_bytes: size of the paired levels.
    """

    student: Cost
    teacher: Cost | None = None
    levels: Mapping[str, LevelCost] = field(default_factory=dict)
    student_pyramid_bytes: int = 0
    teacher_pyramid_bytes: int = 0

    @property
    def loss(self) -> Cost:
        """Cost of the loss over all levels."""
        return sum((part for level in self.levels.values() for part in (level.align, level.method)), Cost())


def count_stage(task: DistillationTask, batch: Batch) -> StageCost:
    """Count the cost of each part of the task's current stage by running it once.

    Args:
        task: in training mode, on the batch's device, as are its teachers.
        batch: images and boxes.
    """
    pyramid: FeaturePyramid = {}

    def student_step() -> list[Tensor]:
        result = run_student(task.student, batch.images, task.targets_in_use(batch.targets))
        pyramid.update(result.pyramid)
        return list((result.losses or result.pyramid).values())

    student = count(student_step, task.student)
    student_bytes = _bytes(pyramid.values())
    used = task.levels_in_use(task.stage)
    if not used:
        return StageCost(student, student_pyramid_bytes=student_bytes)
    teachers = [
        count(
            partial(run_teacher, lesson.teacher, batch.for_teachers, queries=lesson.compares_queries),
            lesson.teacher.detector,
        )
        for lesson in task.lessons
    ]
    paired = [teacher.features(batch.for_teachers)[level.name] for teacher, levels in used.items() for level in levels]
    return StageCost(student, sum(teachers, Cost()), _count_levels(task, batch), student_bytes, _bytes(paired))


def count(run: Callable[[], object], module: nn.Module, inputs: object = ()) -> Cost:
    """Count the cost of a call and of its backward pass; gradients of the weights are discarded.

    Args:
        run: returns nested tensors; the backward pass starts at those that require a gradient.
        module: whose weights are used.
        inputs: nested tensors that exist anyway and are not counted as saved.
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

    elements, forward, backward = _Elements(), _flop_counter(), _flop_counter()
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
    """Run a step of the current stage and return the modules' arguments, detached from its graph."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = tree_map(_as_leaf, (args, kwargs))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        task(batch.images, batch.targets, larger=batch.larger)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _count_levels(task: DistillationTask, batch: Batch) -> dict[str, LevelCost]:
    """Count alignment and method of each level on the inputs of a real step."""
    criteria = [lesson.criterion for lesson in task.lessons]
    calls = record_calls(task, batch, chain.from_iterable((*each.align, *each.methods) for each in criteria))
    levels: dict[str, LevelCost] = {}
    parts = chain.from_iterable(zip(each.pairs, each.align, each.methods, strict=True) for each in criteria)
    for pair, align, method in parts:
        # without the aligned feature, unless it is the student's own
        inputs = [calls[align][0], calls[method][0][1:]]
        costs = (_count_call(part, *calls[part], inputs) for part in (align, method))
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
    """Count the elements processed by kernels other than convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if not func.is_view and packet not in flop_registry and packet not in ALLOCATIONS:
            self.count += max((value.numel() for value in _tensors((args, out))), default=0)
        return out


def _flop_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={aten.convolution_backward: _convolution_backward_flops})


def _convolution_backward_flops(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Any, **_: Any
) -> int:
    """Count the FLOPs of the forward pass for each requested gradient.

    PyTorch's own formula multiplies the weight gradient of a grouped convolution by the number of groups.
    """
    transposed, mask = rest[4], rest[7]
    positions = math.prod((x if transposed else grad)[2:])
    gradients: int = sum(mask[:2])
    return 2 * x[0] * positions * math.prod(weight) * gradients
