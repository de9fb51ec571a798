from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests.helpers.fixtures import STUDENT
from torch import nn

from dfmsd.detectors import build_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.estimation.flops import Cost, count, count_stage, record_calls
from dfmsd.estimation.schedules import random_batch
from dfmsd.losses.align import Align, LevelPair
from dfmsd.losses.generation import GenerationBlock
from dfmsd.types import LevelSpec

BATCH, SIDE, CLASSES = 2, 64, 3


@pytest.fixture(scope="module")
def shared_task() -> DistillationTask:
    """Return a task with a stage without teacher, and one with a Faster R-CNN of another width."""
    torch.manual_seed(0)
    student = build_detector(STUDENT, ("a", "b", "c"))
    teacher = build_detector(replace(STUDENT, arch="faster_rcnn", fpn_channels=32), ("a", "b", "c"))
    stages = [StageConfig(epochs=1), StageConfig(epochs=1, teacher="teacher")]
    return DistillationTask(
        student, stages, [[], [FrozenTeacher(teacher, "teacher")]], {"name": "dfmsd", "generation": "full"}
    ).train()


@pytest.fixture
def task(shared_task: DistillationTask) -> DistillationTask:
    return copy.deepcopy(shared_task)


def multiply_adds(module: nn.Module, run: object) -> int:
    """Count the FLOPs of every convolution and linear layer independently, with hooks."""
    total = 0

    def add(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += layer.weight[0].numel() * output.numel()
        elif isinstance(layer, nn.Linear):
            total += layer.in_features * output.numel()

    hooks = [layer.register_forward_hook(add) for layer in module.modules()]
    run()  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_convolution_flops(groups: int) -> None:
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    image = torch.rand(2, 8, 10, 12, requires_grad=True)
    cost = count(lambda: layer(image), layer)
    forward = 2 * (2 * 16 * 10 * 12) * (8 // groups * 9)
    assert (cost.forward, cost.backward) == (forward, 2 * forward)
    assert cost.parameter_bytes == 4 * (16 * 8 // groups * 9 + 16)
    assert layer.weight.grad is None


def test_convolution_of_input_without_gradient() -> None:
    layer = nn.Conv2d(8, 16, 3)
    cost = count(lambda: layer(torch.rand(1, 8, 5, 5)), layer)
    assert cost.backward == cost.forward == 2 * (16 * 3 * 3) * (8 * 9)


def test_transposed_convolution_flops() -> None:
    layer = nn.ConvTranspose2d(8, 16, 3, stride=2)
    image = torch.rand(2, 8, 5, 6, requires_grad=True)
    cost = count(lambda: layer(image), layer)
    assert cost.forward == 2 * (2 * 8 * 5 * 6) * (16 * 9)
    assert cost.backward == 2 * cost.forward


def test_generation_block_is_two_convolutions() -> None:
    block = GenerationBlock(16)
    feature = torch.rand(2, 16, 8, 8, requires_grad=True)
    cost = count(lambda: block(feature), block, inputs=feature)
    one = 2 * (2 * 16 * 8 * 8) * (16 * 9)
    assert (cost.forward, cost.backward) == (2 * one, 4 * one)
    assert cost.kept_bytes == feature.nbytes  # the ReLU works in place; the input exists anyway


def test_elementwise_operations() -> None:
    value = torch.rand(10, 10, requires_grad=True)
    cost = count(lambda: value.exp().t(), nn.Identity())  # exp, then its backward, a multiplication; t() costs nothing
    assert (cost.forward, cost.backward, cost.elementwise, cost.kept_bytes) == (0, 0, 200, 400)


def test_nothing_is_saved_without_gradient() -> None:
    layer = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        cost = count(lambda: layer(torch.rand(1, 3, 4, 4)), layer)
    assert cost.backward == cost.kept_bytes == 0
    assert cost.forward > 0


def test_identity_alignment_is_free() -> None:
    level = LevelSpec("p3", 8, 8)
    feature = torch.rand(1, 8, 4, 4, requires_grad=True)
    align = Align(LevelPair(level, level))
    assert count(lambda: align(feature, feature)[0], align, inputs=feature) == Cost()


def test_student_step_is_the_sum_of_its_layers(task: DistillationTask) -> None:
    batch = random_batch(BATCH, SIDE, CLASSES)
    cost = count_stage(task, batch).student
    expected = multiply_adds(task.student, lambda: task.student(batch.images, batch.targets))
    assert cost.forward == 2 * expected
    stem = task.student.model.backbone.body.conv_stem
    without_image = 2 * stem.weight.numel() * BATCH * (SIDE // 2) ** 2  # no gradient for the images
    assert cost.backward == 2 * cost.forward - without_image
    assert cost.parameter_bytes == sum(4 * weight.numel() for weight in task.student.parameters())
    assert cost.kept_bytes > batch.images.nbytes


def test_stage_without_teacher(task: DistillationTask) -> None:
    cost = count_stage(task, random_batch(BATCH, SIDE, CLASSES))
    assert cost.teacher is None
    assert cost.levels == {}
    assert cost.loss == Cost()
    assert cost.teacher_pyramid_bytes == 0
    assert cost.student_pyramid_bytes == 4 * BATCH * 16 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)


def test_stage_parts_add_up_to_a_step(task: DistillationTask) -> None:
    task.enter_stage(1)
    batch = random_batch(BATCH, SIDE, CLASSES)
    cost = count_stage(task, batch)
    ((teacher, criterion, *_),) = task.lessons
    assert cost.teacher is not None
    assert cost.teacher.forward == 2 * multiply_adds(teacher.detector, lambda: teacher.features(batch.images))
    assert cost.teacher.backward == cost.teacher.kept_bytes == 0
    assert list(cost.levels) == ["p3", "p4", "p5", "p6", "p7"]
    assert cost.teacher_pyramid_bytes == 4 * BATCH * 32 * (16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1)
    first = cost.levels["p3"]  # resized to the teacher's stride of 4
    assert first.align.forward == 2 * (BATCH * 32 * 8 * 8) * 16
    blocks = 2 * 2  # two branches of two convolutions
    assert first.method.forward == pytest.approx(blocks * 2 * (BATCH * 32 * 16 * 16) * (32 * 9), rel=0.01)
    assert first.method.backward == pytest.approx(2 * first.method.forward, rel=0.01)
    assert first.method.kept_bytes > 0
    assert first.method.elementwise > 0

    args, kwargs = record_calls(task, batch, [criterion])[criterion]
    whole = count(lambda: criterion(*args, **kwargs), criterion, [args, kwargs])
    assert (whole.forward, whole.parameter_bytes) == (cost.loss.forward, cost.loss.parameter_bytes)
    assert whole.backward == cost.loss.backward
    assert whole.kept_bytes == pytest.approx(cost.loss.kept_bytes, rel=0.1)


def test_loss_sum_costs_the_sum_of_its_methods() -> None:
    torch.manual_seed(0)
    student = build_detector(STUDENT, ("a", "b", "c"))
    teacher = FrozenTeacher(build_detector(replace(STUDENT, fpn_channels=32), ("a", "b", "c")), "teacher")
    batch = random_batch(BATCH, SIDE, CLASSES)
    found = []
    for loss in ([{"name": "mgd"}, {"name": "dfmsd", "generation": "full"}], {"name": "mgd"}, {"generation": "full"}):
        task = DistillationTask(student, [StageConfig(epochs=1, teacher="teacher")], [[teacher]], loss).train()
        found.append(count_stage(task, batch))
    both, first, second = found
    assert list(both.levels) == list(first.levels)
    assert both.loss.forward == first.loss.forward + second.loss.forward
    assert both.loss.parameter_bytes == first.loss.parameter_bytes + second.loss.parameter_bytes
    assert both.teacher_pyramid_bytes == first.teacher_pyramid_bytes


def test_counting_leaves_no_gradient(task: DistillationTask) -> None:
    task.enter_stage(1)
    count_stage(task, random_batch(BATCH, SIDE, CLASSES))
    assert all(weight.grad is None for weight in task.parameters())


def test_simultaneous_teachers_cost_their_sum() -> None:
    torch.manual_seed(0)
    student, *detectors = (build_detector(STUDENT, ("a",)) for _ in range(3))
    first, second = (FrozenTeacher(detector, name) for detector, name in zip(detectors, "ab", strict=True))
    batch = random_batch(1, 64, 1)
    costs = []
    for teachers in ([first], [first, second]):
        stage = StageConfig(epochs=1, teacher=[teacher.name for teacher in teachers])
        task = DistillationTask(student, [stage], [teachers], {"name": "fitnet"}).train()
        costs.append(count_stage(task, batch))
    one, both = costs  # the second teacher is as large as the first
    assert one.teacher is not None
    assert both.teacher == one.teacher + one.teacher
    assert both.loss.elementwise == 2 * one.loss.elementwise > 0
    assert both.teacher_pyramid_bytes == 2 * one.teacher_pyramid_bytes
    assert both.student == one.student
