from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.few_neurons import IMAGES, LOSS, SUM, TARGETS, FewNeurons, frozen, plan, randomize
from torch import Tensor
from torch.testing import assert_close

from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError


def one_stage(
    student: FewNeurons | None = None, teacher: FrozenTeacher | None = None, **loss: object
) -> DistillationTask:
    student, teacher = student or FewNeurons(), teacher or frozen()
    return DistillationTask(student, [StageConfig(1, teacher.name)], [[teacher]], {**LOSS, **loss})


def step(task: DistillationTask) -> None:
    optimizer = torch.optim.SGD(task.trainable.parameters(), lr=0.1)
    sum(task(IMAGES, TARGETS).values()).backward()
    optimizer.step()


# The teacher stays outside.


def test_the_teacher_is_in_no_state_dict_parameter_list_or_module_tree() -> None:
    teacher = frozen()
    task = one_stage(teacher=teacher)
    theirs = {id(p) for p in teacher.detector.parameters()}
    assert not theirs & {id(p) for p in task.parameters()}
    assert teacher.detector not in set(task.modules())
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.trainable.parameters()}
    assert set(task.state_dict()) == {f"trainable.{name}" for name in task.trainable.state_dict()}
    sizes = sum(p.numel() for p in task.student.parameters()) + sum(
        p.numel() for p in task.lessons[0].criterion.parameters()
    )
    assert sum(p.numel() for p in task.parameters()) == sizes


def test_the_teacher_stays_in_eval_mode() -> None:
    teacher = frozen()
    task = one_stage(teacher=teacher)
    for disturb in (task.train, teacher.detector.train, teacher.detector.drop.train, teacher.detector.norm.train):
        disturb()
        before = copy.deepcopy(teacher.detector.state_dict())
        first, second = teacher.features(IMAGES), teacher.features(IMAGES)
        assert_close(first, second, rtol=0, atol=0)  # dropout is off
        assert not any(module.training for module in teacher.detector.modules())
        assert_close(dict(teacher.detector.state_dict()), dict(before), rtol=0, atol=0)  # batch norm counts nothing
    assert task.student.training


def test_a_training_step_changes_the_student_and_not_the_teacher() -> None:
    teacher, student = frozen(), FewNeurons()
    task = one_stage(student, teacher).train()
    theirs, ours = copy.deepcopy(teacher.detector.state_dict()), copy.deepcopy(student.state_dict())
    for _ in range(2):
        step(task)
    assert_close(dict(teacher.detector.state_dict()), dict(theirs), rtol=0, atol=0)
    assert all(p.grad is None and not p.requires_grad for p in teacher.detector.parameters())
    assert {name for name, value in student.state_dict().items() if torch.equal(value, ours[name])} == set()


def test_the_teachers_features_carry_no_gradient() -> None:
    assert not any(level.requires_grad for level in frozen().features(IMAGES).values())


# A step.


def test_one_forward_of_each_model_on_the_same_raw_images() -> None:
    teacher, student = frozen(), FewNeurons()
    one_stage(student, teacher)(IMAGES, TARGETS)
    assert len(student.seen) == len(teacher.detector.seen) == 1
    assert student.seen[0] is IMAGES  # each normalises for itself
    assert teacher.detector.seen[0] is IMAGES


def test_losses_are_named_by_origin() -> None:
    named = one_stage()(IMAGES, TARGETS)
    assert list(named) == ["task/count", "task/size", "mask/p8", "sfa/p8", "mask/p16", "sfa/p16"]


def test_the_terms_are_those_of_the_criterion() -> None:
    teacher = frozen()
    task = one_stage(teacher=teacher).eval()
    named = task(IMAGES, TARGETS)
    pyramid, own = task.student(IMAGES, TARGETS)
    boxes = [target["boxes"] for target in TARGETS]
    terms = task.lessons[0].criterion(pyramid, teacher.features(IMAGES), boxes=boxes, size=(32, 64), stage=1)
    assert_close(named, {f"task/{name}": value for name, value in own.items()} | terms)
    assert set(task.diagnostics()) == {"pearson/p8", "pearson/p16"}


def test_distillation_alone_teaches() -> None:
    task = one_stage(alpha=0.0).eval()
    optimizer = torch.optim.Adam(task.trainable.parameters(), lr=0.02)
    values = []
    for _ in range(40):
        loss = sum(value for name, value in task(IMAGES, TARGETS).items() if name.startswith("sfa/"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


def test_without_teacher_a_step_is_plain_training_of_the_detector() -> None:
    student = FewNeurons()
    alone = copy.deepcopy(student)
    task = DistillationTask(student, [StageConfig(1)], [[]], LOSS)
    assert set(dict(task.named_parameters())) == {f"trainable.student.{name}" for name, _ in alone.named_parameters()}

    torch.manual_seed(5)
    named = task(IMAGES, TARGETS)
    sum(named.values()).backward()
    torch.manual_seed(5)
    _, own = alone(IMAGES, TARGETS)
    sum(own.values()).backward()

    assert_close(named, {f"task/{name}": value for name, value in own.items()}, rtol=0, atol=0)
    for (name, ours), theirs in zip(student.named_parameters(), alone.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=0, atol=0, msg=name)
    assert_close(dict(student.state_dict()), dict(alone.state_dict()), rtol=0, atol=0)
    assert task.diagnostics() == {}


def test_the_distillation_leaves_the_detectors_own_losses_as_they_are() -> None:
    student = FewNeurons()
    alone = copy.deepcopy(student)
    task = one_stage(student)
    torch.manual_seed(5)
    named = task(IMAGES, TARGETS)
    torch.manual_seed(5)
    _, own = alone(IMAGES, TARGETS)
    assert_close({name: named[f"task/{name}"] for name in own}, own, rtol=0, atol=0)


# Stages.


def test_each_stage_has_its_own_teacher_and_layers() -> None:
    first, second = frozen(3), frozen(5)
    task = plan(first, None, second)
    channels = []
    for index, teacher in enumerate((first, None, second)):
        task.enter_stage(index)
        assert task.teachers[index] == (() if teacher is None else (teacher,))
        named = task(IMAGES, TARGETS)
        assert any(name.startswith("mask/") for name in named) is (teacher is not None)
        channels.append([lesson.criterion.pairs[0].teacher.channels for lesson in task.lessons])
    assert channels == [[3], [], [5]]
    assert len(first.detector.seen) == len(second.detector.seen) == 1


def test_all_stages_layers_are_trainable_from_the_start() -> None:
    task = plan(frozen(3), frozen(5))
    wanted = sum(p.numel() for p in task.student.parameters())
    for index in range(2):
        task.enter_stage(index)
        wanted += sum(p.numel() for p in task.lessons[0].criterion.parameters())
    assert sum(p.numel() for p in task.trainable.parameters()) == wanted


def test_the_stage_number_reaches_the_masks() -> None:
    task = plan(frozen(), frozen(), ratio=0.25).eval()
    seen = []
    for index in range(2):
        task.enter_stage(index)
        task.lessons[0].criterion.methods[0].register_forward_pre_hook(lambda _, args: seen.append(args[2].stage))
        task(IMAGES, TARGETS)
    assert seen == [1, 2]


def test_a_stages_own_options_replace_those_of_the_run() -> None:
    stages = [StageConfig(1, "a", loss={"alpha": 0.0}), StageConfig(1, "b")]
    task = DistillationTask(FewNeurons(), stages, [[frozen()], [frozen()]], {**LOSS, "alpha": 3.0, "beta": 2.0})
    assert task.lessons[0].criterion.terms == ("sfa",)
    task.enter_stage(1)
    assert task.lessons[0].criterion.terms == ("mask", "sfa")
    assert {method.options.beta for method in task.lessons[0].criterion.methods} == {2.0}


def test_a_sum_of_losses_trains_the_student_and_the_layers_of_each() -> None:
    student, teacher = FewNeurons(), frozen(4, strides=(4, 8, 16))
    task = DistillationTask(student, [StageConfig(1, "big")], [[teacher]], SUM, balance=0.5).train()
    named = task(IMAGES, TARGETS)
    of_strides = [f"{term}/p{stride}" for term in ("pkd", "fg", "bg", "attention", "relation") for stride in (8, 16)]
    assert set(named) == {"task/count", "task/size", "mgd/p8", "mgd/p16", *of_strides}
    assert task.levels_in_use(0) == {teacher: set(teacher.levels)}  # by stride the last two, by index the first two
    assert set(task.diagnostics()) == {"pearson/p8", "pearson/p16", "balance"}
    layers = {name.split(".")[2]: p for name, p in task.trainable["criteria"].named_parameters()}
    assert set(layers) == {"pkd", "fgd", "mgd"}
    sum(named.values()).backward()
    assert all(parameter.grad is not None for parameter in task.trainable.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())


def test_a_stages_list_of_losses_stands_alone() -> None:
    stages = [StageConfig(1, "a", loss=SUM), StageConfig(1, "b")]
    task = DistillationTask(FewNeurons(), stages, [[frozen()], [frozen()]], {**LOSS, "alpha": 0.0})
    assert task.lessons[0].criterion.terms == ("pkd", "fg", "bg", "attention", "relation", "mgd")
    task.enter_stage(1)
    assert task.lessons[0].criterion.terms == ("sfa",)


def test_the_layers_of_a_sum_are_reused() -> None:
    stages = [StageConfig(1, "a"), StageConfig(1, "b", fresh=False)]
    task = DistillationTask(FewNeurons(), stages, [[frozen()], [frozen()]], SUM)
    former = task.lessons[0].criterion
    randomize(former)
    task.enter_stage(1)
    assert_close(dict(task.lessons[0].criterion.state_dict()), dict(former.state_dict()), rtol=0, atol=0)
    one_less = [StageConfig(1, "a"), StageConfig(1, "b", SUM[:2], fresh=False)]
    with pytest.raises(DfmsdError, match=r"stages\.1\.fresh: .* differ in shape"):
        DistillationTask(FewNeurons(), one_less, [[frozen()], [frozen()]], SUM)


def test_an_error_names_the_stage_and_the_teacher() -> None:
    with pytest.raises(DfmsdError, match=r"stage 2, teacher coarse: student and teacher share 1 pyramid") as caught:
        plan(frozen(), frozen(strides=(16, 32), name="coarse"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fresh", "begins", "taken"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_layers_are_reused_if_the_plan_says_so(fresh: bool, begins: bool, taken: bool) -> None:
    stages = [StageConfig(1, "a"), StageConfig(1, "b", fresh=fresh)]
    task = DistillationTask(FewNeurons(), stages, [[frozen()], [frozen()]], LOSS)
    former = task.lessons[0].criterion
    randomize(former)
    task.enter_stage(1, begins=begins)
    assert task.lessons[0].criterion is not former
    equal = [
        torch.equal(a, b) for a, b in zip(task.lessons[0].criterion.parameters(), former.parameters(), strict=True)
    ]
    assert all(equal) is taken
    randomize(task.lessons[0].criterion)
    assert not torch.equal(
        next(task.lessons[0].criterion.parameters()), next(former.parameters())
    )  # copied, not shared


def test_layers_of_another_shape_cannot_be_reused() -> None:
    stages = [StageConfig(1, "a"), StageConfig(1, "b", fresh=False)]
    with pytest.raises(DfmsdError, match=r"stages\.1\.fresh: .* stages 1 and 2 differ in shape.*set fresh: true"):
        DistillationTask(FewNeurons(), stages, [[frozen(3)], [frozen(5)]], LOSS)


def test_the_former_teacher_does_not_run() -> None:
    former = frozen()
    task = plan(former, frozen())
    task.enter_stage(1)
    task(IMAGES, TARGETS)
    assert former.detector.seen == []


def test_balance_scales_all_terms_together_to_the_tasks_gradient() -> None:
    teacher = frozen()
    task = DistillationTask(FewNeurons(), [StageConfig(1, "a")], [[teacher]], LOSS, balance=0.5).eval()
    pyramids = []
    task.student.register_forward_hook(lambda module, args, output: pyramids.append(output[0]))
    named = task(IMAGES, TARGETS)
    levels = list(pyramids[0].values())

    def norm(*prefixes: str) -> Tensor:
        value = sum(value for name, value in named.items() if name.startswith(prefixes))
        gradients = torch.autograd.grad(value, levels, retain_graph=True, allow_unused=True)
        return torch.cat([g.flatten() for g in gradients if g is not None]).norm()

    assert_close(norm("mask/", "sfa/"), 0.5 * norm("task/"))
    assert any("balance" in name for name in task.state_dict())


def test_the_student_is_trained_in_place() -> None:
    student = FewNeurons()
    assert one_stage(student).student is student


# Images without annotations.


def test_images_without_targets_are_used_by_the_distillation_terms_alone() -> None:
    more = torch.cat([IMAGES, torch.rand(3, 3, 32, 64)])
    task = one_stage(alpha=0.0).eval()
    named, alone = task(more, TARGETS), task(IMAGES, TARGETS)
    assert named.keys() == alone.keys()
    for name, value in named.items():
        assert name.startswith("task/") == torch.equal(value, alone[name])
    (lesson,) = task.lessons
    boxes = [target["boxes"] for target in TARGETS] + [torch.zeros(0, 4)] * 3
    pyramids = task.student.features(more), lesson.teacher.features(more)
    expected = lesson.criterion(*pyramids, boxes=boxes, size=(32, 64))
    assert_close({name: value for name, value in named.items() if name in expected}, expected)


def test_a_stage_without_a_teacher_ignores_images_without_targets() -> None:
    student = FewNeurons()
    task = DistillationTask(student, [StageConfig(1)], [[]], LOSS).eval()
    assert_close(task(torch.cat([IMAGES, IMAGES]), TARGETS), task(IMAGES, TARGETS))
    assert [len(images) for images in student.seen] == [2, 2]
