from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from dfmsd.detectors.base import Detector
from dfmsd.distillation.checks import (
    check_classes,
    check_optimizer,
    check_teacher_ap,
    ownership,
    term_scales,
    undisturbed,
)
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Detections, FeaturePyramid, LevelSpec, Target


class FewNeurons(Detector):
    """Two levels from one convolution; ``gain`` scales its loss, ``drop`` draws random numbers."""

    def __init__(self, channels: int = 2, gain: float = 1.0) -> None:
        super().__init__()
        self.levels = (LevelSpec("p8", channels, 8), LevelSpec("p16", channels, 16))
        self.class_names = ("thing",)
        self.stem = nn.Conv2d(3, channels, 8, stride=8)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.5)
        self.gain = gain

    def features(self, images: Tensor) -> FeaturePyramid:
        finest = self.norm(self.stem(images))
        return {"p8": finest, "p16": avg_pool2d(finest, 2)}

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        pyramid = self.features(images)
        return pyramid, {"own": self.gain * (self.drop(pyramid["p8"]) - 1).square().mean()}

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        raise NotImplementedError("nothing here detects")


class Detached(FewNeurons):
    """Its pyramid is cut off the graph, as by a hook on the wrong module."""

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        pyramid, named = super().forward(images, targets)
        return {name: level.detach() for name, level in pyramid.items()}, named


BATCH = Batch(
    images=torch.rand(2, 3, 32, 32),
    targets=[
        {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ],
    sizes=[(32, 32)] * 2,
    scales=[(1.0, 1.0)] * 2,
    image_ids=[1, 2],
)


def build(
    *teachers: FrozenTeacher | None, student: FewNeurons | None = None, balance: float | None = None, **loss: object
) -> DistillationTask:
    stages = [StageConfig(1, None if teacher is None else teacher.name) for teacher in teachers]
    together = [() if teacher is None else (teacher,) for teacher in teachers]
    return DistillationTask(student or FewNeurons(), stages, together, {"name": "dfmsd", **loss}, balance)


def big(channels: int = 3) -> FrozenTeacher:
    return FrozenTeacher(FewNeurons(channels), f"big{channels}")


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def one_line(caught: pytest.ExceptionInfo[DfmsdError]) -> bool:
    return "\n" not in str(caught.value)


# Classes and quality of a teacher.


def test_a_teacher_must_know_a_class_by_name() -> None:
    assert check_classes("t", ["cat", "dog", "bird"], ["dog", "cat"]) is None  # the order is no matter
    with pytest.raises(DfmsdError, match=r"teacher t knows none of .* classes fish, eel; it knows cat, dog;") as caught:
        check_classes("t", ["cat", "dog"], ["fish", "eel"])
    assert one_line(caught)


def test_the_classes_that_a_teacher_lacks_are_named() -> None:
    line = check_classes("t", ["cat", "dog"], ["cat", "fish", "eel"])
    assert line is not None
    assert line.startswith("teacher t does not know fish, eel of the data's 3 classes")


def test_a_long_list_of_known_classes_is_cut() -> None:
    with pytest.raises(DfmsdError, match=r"c19, \.\.\.;") as caught:
        check_classes("t", [f"c{i}" for i in range(80)], ["fish"])
    assert "c20" not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "student", "problem"),
    [
        (0.0, 0.0, "about 0; check its pixels .*mean.*BGR.*255.*, class names, image size and checkpoint"),
        (0.009, 0.0, "about 0"),
        (0.2, 0.25, r"below the student's start \(25\.0\)"),
    ],
)
def test_a_teacher_with_a_low_ap_is_refused(teacher: float, student: float, problem: str) -> None:
    with pytest.raises(DfmsdError, match=rf"teacher t measures AP .*{problem}.*`allow_weak_teacher`") as caught:
        check_teacher_ap("t", teacher, student)
    assert one_line(caught)


@pytest.mark.parametrize(("teacher", "student"), [(0.3, 0.0), (0.3, 0.3), (0.01, 0.0)])
def test_a_teacher_at_least_as_good_as_the_student_is_accepted(teacher: float, student: float) -> None:
    check_teacher_ap("t", teacher, student)


# Who owns which parameter.


def test_parameters_are_counted_by_owner_and_each_teacher_once() -> None:
    first, second = big(3), big(5)
    task = build(first, second, first)
    layers = 0
    for index in range(3):
        task.enter_stage(index)
        layers += size(task.lessons[0].criterion)
    assert ownership(task) == {
        "student": size(task.student),
        "layers": layers,
        "teachers": size(first.detector) + size(second.detector),
    }
    assert ownership(build(None)) == {"student": size(task.student), "layers": 0, "teachers": 0}


def sgd(*parameters: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_an_optimizer_of_the_trainable_part_is_accepted() -> None:
    task = build(big(), big(5))
    check_optimizer(sgd(*task.trainable.parameters()), task)
    groups = [{"params": [p]} for p in task.trainable.parameters()]
    check_optimizer(torch.optim.SGD(groups, lr=0.1), task)


def test_a_missing_layer_is_named() -> None:
    task = build(big())
    kept = [p for name, p in task.trainable.named_parameters() if name != "criteria.0.align.1.project.weight"]
    with pytest.raises(DfmsdError, match=r"not in the optimizer: criteria\.0\.align\.1\.project\.weight;") as caught:
        check_optimizer(sgd(*kept), task)
    assert one_line(caught)
    with pytest.raises(DfmsdError, match=r"not in the optimizer: criteria\.0\.align\.0\.project\.weight, "):
        check_optimizer(sgd(*task.student.parameters()), task)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_teachers_parameter_in_the_optimizer_is_refused(frozen: bool) -> None:
    teacher = big()
    task = build(teacher)
    intruder = next(teacher.detector.parameters()).requires_grad_(not frozen)
    with pytest.raises(DfmsdError, match=r"holds 1 tensor\(s\) that are not trained, such as a teacher's") as caught:
        check_optimizer(sgd(*task.trainable.parameters(), intruder), task)
    assert one_line(caught)


def test_frozen_parts_of_the_student_may_be_in_the_optimizer() -> None:
    student = FewNeurons()
    student.stem.requires_grad_(False)
    task = build(big(), student=student)
    check_optimizer(sgd(*task.trainable.parameters()), task)
    check_optimizer(sgd(*(p for p in task.trainable.parameters() if p.requires_grad)), task)


# The size of each term on one batch.


def test_every_term_of_every_stage_is_measured() -> None:
    task = build(big(), None, big(5))
    scales = term_scales(task, BATCH)
    assert [(s.stage, s.name) for s in scales] == [
        *[(1, "task"), (1, "mask"), (1, "sfa")],
        (2, "task"),
        *[(3, "task"), (3, "mask"), (3, "sfa")],
    ]
    assert all(s.value > 0 and s.gradient > 0 for s in scales)


def test_values_and_gradients_are_those_of_a_training_step() -> None:
    task = build(big())
    torch.manual_seed(4)
    scales = {s.name: s for s in term_scales(task, BATCH)}
    torch.manual_seed(4)
    named = task.train()(BATCH.images, BATCH.targets)
    for group in ("task", "mask", "sfa"):
        value = sum(term for name, term in named.items() if name.startswith(f"{group}/"))
        gradients = torch.autograd.grad(value, list(task.student.parameters()), retain_graph=True, allow_unused=True)
        norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
        assert scales[group].value == pytest.approx(float(value.detach()))
        assert scales[group].gradient == pytest.approx(float(norm))


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(training: bool) -> None:
    task = build(big(), big(5), balance=1.0).train(training)
    task.student.norm.eval()  # a frozen layer keeps its own mode
    task.enter_stage(1)
    before = copy.deepcopy(task.state_dict())
    modes = [module.training for module in task.modules()]
    random = torch.get_rng_state()
    term_scales(task, BATCH)
    assert_close(dict(task.state_dict()), dict(before), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in task.modules()] == modes
    assert task.stage == 1
    assert all(p.grad is None for p in task.parameters())


def test_the_state_is_restored_after_an_error() -> None:
    task = build(big(), big()).eval()
    before = copy.deepcopy(task.state_dict())
    with pytest.raises(RuntimeError, match="in the middle"), undisturbed(task):  # noqa: PT012
        assert task.training
        task.enter_stage(1)
        task(BATCH.images, BATCH.targets)
        raise RuntimeError("in the middle")
    assert_close(dict(task.state_dict()), dict(before), rtol=0, atol=0)
    assert not task.training
    assert task.stage == 0


def test_a_student_that_is_its_own_teacher_is_refused() -> None:
    student = FewNeurons()
    with pytest.raises(DfmsdError, match="is the teacher the student itself") as caught:
        term_scales(build(FrozenTeacher(student, "itself"), student=student), BATCH)
    assert one_line(caught)


def test_a_second_stage_without_effect_is_found() -> None:
    student = FewNeurons()
    student.norm = nn.Identity()  # the same in training and eval mode, so a copy is an exact twin
    twin = FrozenTeacher(copy.deepcopy(student), "twin")
    with pytest.raises(DfmsdError, match=r"stage 2: sfa/p8 is exactly 0 on the first batch"):
        term_scales(build(big(), twin, student=student), BATCH)


def test_a_term_on_objects_may_be_zero_on_a_level_or_in_a_batch_without_any() -> None:
    stage = [StageConfig(1, "big")]
    task = DistillationTask(FewNeurons(), stage, [[big()]], {"name": "fgd"})
    whole: Target = {"boxes": torch.tensor([[0.0, 0.0, 64.0, 32.0]]), "labels": torch.tensor([0])}
    none: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    one = torch.tensor([[0.0, 0.0, 20.0, 8.0]])  # at stride 16 it reaches over all
    for targets, zero in ([[{**whole, "boxes": one}] * 2, set()], [[none] * 2, {"fg"}]):
        scales = {scale.name: scale.value for scale in term_scales(task, BATCH._replace(targets=targets))}
        assert {name for name, value in scales.items() if value == 0} == zero
    with pytest.raises(DfmsdError, match="stage 1: bg/p8 is exactly 0 on the first batch"):
        term_scales(task, BATCH._replace(targets=[whole] * 2))


def test_broken_weights_are_found() -> None:
    teacher = big()
    with torch.no_grad():
        teacher.detector.stem.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(DfmsdError, match=r"stage 1: mask/p8 is nan on the first batch; check the teacher's weights"):
        term_scales(build(teacher), BATCH)


def test_a_detector_loss_of_zero_is_no_error() -> None:
    scales = {s.name: s for s in term_scales(build(big(), student=FewNeurons(gain=0.0)), BATCH)}
    assert scales["task"].value == 0
    assert scales["sfa"].value > 0


@pytest.mark.parametrize("channels", [2, 3])  # without and with an alignment layer
@pytest.mark.parametrize(("alpha", "term"), [(1.0, "mask"), (0.0, "sfa")])
def test_a_pyramid_detached_from_the_student_is_found(channels: int, alpha: float, term: str) -> None:
    with pytest.raises(DfmsdError, match=rf"stage 1: no gradient of {term} reaches the student") as caught:
        term_scales(build(big(channels), student=Detached(), alpha=alpha), BATCH)
    assert one_line(caught)


def test_a_frozen_student_is_found() -> None:
    student = FewNeurons().requires_grad_(False)
    with pytest.raises(DfmsdError, match=r"stage 1: no gradient of task reaches the student; are its weights frozen"):
        term_scales(build(big(), student=student), BATCH)


def test_a_frozen_layer_of_the_loss_is_named() -> None:
    task = build(big())
    name, layer = next(iter(task.lessons[0].criterion.named_parameters()))
    layer.requires_grad_(False)
    with pytest.raises(
        DfmsdError, match=rf"stage 1: {re.escape(name)} cannot learn \(requires_grad is False\)"
    ) as caught:
        term_scales(task, BATCH)
    assert one_line(caught)


def test_a_layer_that_no_term_uses_is_named() -> None:
    task = build(big())
    method = task.lessons[0].criterion.methods[0]
    method.generation["unused"] = nn.Conv2d(1, 1, 1)
    method.reconstruction_error = lambda visible, masks, target: (visible - target).square().mean()
    with pytest.raises(DfmsdError, match=r"stage 1: no gradient reaches methods\.0\.generation\.") as caught:
        term_scales(task, BATCH)
    assert one_line(caught)
