"""Stages without labels: the teachers' terms alone, on all images of a batch."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.few_neurons import IMAGES, TARGETS, FewNeurons, frozen
from torch import Tensor
from torch.testing import assert_close

from dfmsd.detectors import Detector, DetectorConfig, build_detector
from dfmsd.distillation.basis import choose_basis
from dfmsd.distillation.checks import term_scales
from dfmsd.distillation.stages import StageConfig, adds_labels, check_stages, epochs_without_labels
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig
from dfmsd.types import Batch

ALONE = StageConfig(1, "big", labels=False)
AFTER = StageConfig(1, "big")


def task_of(teacher: FrozenTeacher, student: Detector, loss: LossConfig | None = None) -> DistillationTask:
    """A stage without labels and one with the same teacher, balanced."""
    stages = [StageConfig(1, teacher.name, labels=False), StageConfig(1, teacher.name)]
    return DistillationTask(student, stages, [[teacher], [teacher]], loss or {"name": "pkd"}, balance=2.0)


def test_the_gradient_is_that_of_the_terms_on_all_images() -> None:
    teacher, student = frozen(2), FewNeurons()
    alone = copy.deepcopy(student)
    task = task_of(teacher, student).train()
    torch.manual_seed(3)
    named = task(IMAGES, TARGETS)
    sum(named.values()).backward()

    torch.manual_seed(3)  # of dropout
    terms = task.lessons[0].criterion(
        alone.train().features(IMAGES),
        teacher.features(IMAGES),
        boxes=[torch.empty(0, 4)] * len(IMAGES),
        size=(32, 64),
        stage=1,
    )
    sum(terms.values()).backward()
    assert_close(named, terms, rtol=0, atol=0)
    for ours, theirs in zip(student.parameters(), alone.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_images_with_and_without_annotations_count_the_same() -> None:
    task = task_of(frozen(2), FewNeurons()).eval()
    assert_close(task(IMAGES, TARGETS), task(IMAGES, TARGETS[:1]), rtol=0, atol=0)
    assert_close(task(IMAGES, TARGETS), task(IMAGES, []), rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["fcos", "ssdlite", "faster_rcnn"])
def test_nothing_of_the_head_changes(arch: str) -> None:
    config = DetectorConfig(arch, "test_efficientnet", fpn_channels=16, head_convs=1)
    student, teacher = (build_detector(config, ("a", "b")) for _ in range(2))
    before = copy.deepcopy(student.state_dict())
    task = task_of(FrozenTeacher(teacher, "big"), student).train()
    optimizer = torch.optim.AdamW(task.trainable.parameters(), lr=0.1, weight_decay=0.5)
    sum(task(torch.rand(2, 3, 64, 64), TARGETS).values()).backward()
    optimizer.step()
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("model.backbone.") for name in changed)
    assert all(name.startswith("model.backbone.") for name in changed)  # torchvision's name for backbone and neck


def test_the_balance_begins_with_the_labels() -> None:
    task = task_of(frozen(2), FewNeurons())
    task(IMAGES, TARGETS)
    assert set(task.diagnostics()) == {"pearson/p8", "pearson/p16"}
    task.enter_stage(1)
    assert task.lessons[0].balance is not None
    assert task.lessons[0].balance.calls == 0
    named = task(IMAGES, TARGETS)
    assert {"task/count", "task/size"} <= set(named)
    assert task.diagnostics()["balance"] > 0
    assert task.lessons[0].balance.calls == 1


def test_the_pre_flight_measures_a_loss_that_needs_objects() -> None:
    """Without boxes FGD has no foreground: its term is exactly 0, which is no fault here."""
    task = task_of(frozen(2), FewNeurons(), {"name": "fgd"})
    scales = term_scales(task, Batch(IMAGES, TARGETS, [], [], []))
    assert [scale.name for scale in scales if scale.stage == 1] == ["fg", "bg", "attention", "relation"]
    assert [scale.name for scale in scales if scale.stage == 2] == ["task", "fg", "bg", "attention", "relation"]


# Bases and layers, from images alone to labels.


class Other(FewNeurons):
    """A detector of another kind."""


def basis_of(task: DistillationTask, stage: int) -> str:
    (lesson,) = task.lessons_of(stage)
    basis = lesson.criterion.basis
    return "own" if basis is None else "former" if basis.former else "student"


@pytest.mark.parametrize(
    ("stages", "teachers", "bases"),
    [
        ([AFTER], "a", ["student"]),  # which has learned some steps by then
        ([ALONE, AFTER], "aa", ["own", "own"]),  # the same target before and after
        ([ALONE, AFTER], "ab", ["own", "former"]),
        ([ALONE, StageConfig(1), AFTER], "a-a", ["own", None, "student"]),
        ([ALONE, ALONE, AFTER], "aba", ["own", "former", "former"]),
        ([AFTER, ALONE, AFTER], "aaa", ["student", "former", "former"]),
    ],
)
def test_an_unlike_teacher_keeps_its_channels_until_the_student_has_some(
    stages: list[StageConfig], teachers: str, bases: list[str | None]
) -> None:
    known = {name: [FrozenTeacher(Other(2, prefix="t"), name)] for name in "ab"} | {"-": []}
    task = DistillationTask(FewNeurons(), stages, [known[name] for name in teachers], {"name": "dfmsd"})
    assert [basis_of(task, index) if task.teachers[index] else None for index in range(len(stages))] == bases


def test_a_named_basis_is_kept() -> None:
    task = task_of(frozen(2), FewNeurons())
    criterion, student, teacher = task.lessons[0].criterion, task.student, frozen(2).detector
    assert choose_basis("student", criterion, None, student, teacher, learned=False) == "student"


def test_layers_carry_on_from_images_alone_to_labels() -> None:
    teacher = frozen(3)  # other channels, so there is a convolution
    task = task_of(teacher, FewNeurons(), {"name": "mgd"})
    first = {name: value.clone() for name, value in task.lessons_of(0)[0].criterion.state_dict().items()}
    assert first
    assert not all(torch.equal(value, first[name]) for name, value in layers(task, 1).items())
    task.enter_stage(1)
    assert_close(layers(task, 1), first, rtol=0, atol=0)


def layers(task: DistillationTask, stage: int) -> dict[str, Tensor]:
    return dict(task.lessons_of(stage)[0].criterion.state_dict())


@pytest.mark.parametrize(
    ("after", "adds"),
    [
        (AFTER, True),
        (ALONE, False),
        (StageConfig(1, "other"), False),
        (StageConfig(1, ["big", "other"]), False),
        (StageConfig(1, "big", loss={"name": "pkd"}), False),
        (StageConfig(1), False),
    ],
)
def test_a_stage_may_add_the_labels_alone(after: StageConfig, adds: bool) -> None:
    assert adds_labels([ALONE, after], 1) == adds
    assert not adds_labels([AFTER, after], 1)
    assert not adds_labels([after], 0)


def test_layers_of_other_shapes_start_anew() -> None:
    teacher = frozen(3)
    stages = [ALONE, StageConfig(1, "big", basis="student")]  # rotated into the student's channels: no convolution
    task = DistillationTask(FewNeurons(), stages, [[teacher], [teacher]], {"name": "pkd"})
    assert layers(task, 0).keys() != layers(task, 1).keys()
    task.enter_stage(1)


# The plan.


def test_epochs_without_labels_are_counted_from_0() -> None:
    plan = [StageConfig(2, "a", labels=False), StageConfig(1), StageConfig(1, "a", labels=False), StageConfig(2)]
    assert epochs_without_labels(plan) == [0, 1, 3]
    assert epochs_without_labels([AFTER]) == []


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([StageConfig(1, labels=False), AFTER], r"^stages\.0\.labels: false leaves nothing to learn from"),
        ([AFTER, ALONE], r"^stages\.1\.labels: false leaves the student's head untrained.*add a stage with labels"),
        ([ALONE], r"^stages\.0\.labels: false leaves the student's head untrained"),
        (
            [StageConfig(1, "big", labels=False, basis="student"), AFTER],
            r"^stages\.0\.basis: without labels the student has nothing of its own yet.*choose own",
        ),
    ],
)
def test_plans_that_would_not_learn_are_refused(stages: list[StageConfig], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        check_stages(stages)
    assert "\n" not in str(caught.value)
