"""Several teachers in one stage."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.few_neurons import IMAGES, LOSS, SUM, TARGETS, FewNeurons, frozen, plan, randomize
from torch import Tensor
from torch.testing import assert_close

from dfmsd.distillation.checks import ownership, term_scales
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Target

Named = dict[str, Tensor]
BATCH = Batch(IMAGES, TARGETS, [(32, 64)] * 2, [(1.0, 1.0)] * 2, [1, 2])


def pair() -> tuple[FrozenTeacher, FrozenTeacher]:
    """Two teachers of unlike widths and pyramids."""
    return frozen(3, name="first"), frozen(5, strides=(4, 8, 16), name="second")


def exact(*teachers: FrozenTeacher, loss: object = LOSS, balance: float | None = None) -> DistillationTask:
    """A task in float64 whose masks do not draw."""
    torch.manual_seed(4)
    for teacher in teachers:
        teacher.detector.double()
    stage = StageConfig(1, [teacher.name for teacher in teachers])
    return DistillationTask(FewNeurons(), [stage], [teachers], loss, balance).double().eval()  # type: ignore[arg-type]


def step(task: DistillationTask) -> tuple[Named, Named]:
    """Terms, and gradients of the student."""
    targets: list[Target] = [{**target, "boxes": target["boxes"].double()} for target in TARGETS]
    named = task(IMAGES.double(), targets)
    torch.stack(list(named.values())).sum().backward()
    return named, {name: value.grad for name, value in task.student.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("balance", [None, 0.5])
@pytest.mark.parametrize("loss", [LOSS, SUM, {"name": "mgd", "ratio": 0.0, "weight": 1.0}], ids=["dfmsd", "sum", "mgd"])
def test_two_teachers_give_the_sum_of_their_losses(loss: object, balance: float | None) -> None:
    if loss is SUM:
        loss = [part if part["name"] != "mgd" else {**part, "ratio": 0.0} for part in SUM]  # which draws its masks
    teachers = pair()
    both = exact(*teachers, loss=loss, balance=balance)
    together, gradients = step(both)

    _, plain = step(exact())
    expected, total = {}, {name: -value for name, value in plain.items()}  # each alone brings the task's own gradient
    for lesson, teacher in zip(both.lessons, teachers, strict=True):
        alone = exact(teacher, loss=loss, balance=balance)
        alone.student.load_state_dict(both.student.state_dict())
        alone.lessons[0].criterion.load_state_dict(lesson.criterion.state_dict())
        named, gradient = step(alone)
        terms = {name: value for name, value in named.items() if not name.startswith("task/")}
        assert terms
        expected |= {f"{lesson.label}.{name}": value for name, value in terms.items()}
        expected |= {name: value for name, value in named.items() if name.startswith("task/")}
        total = {name: total[name] + value for name, value in gradient.items()}
        for own, single in zip(lesson.criterion.parameters(), alone.lessons[0].criterion.parameters(), strict=True):
            assert_close(own.grad, single.grad, rtol=1e-9, atol=1e-12)
    assert [lesson.label for lesson in both.lessons] == ["T1", "T2"]
    assert_close(together, expected, rtol=1e-9, atol=1e-12)
    assert_close(gradients, total, rtol=1e-9, atol=1e-12)


def test_terms_and_correlations_are_numbered_with_several_teachers() -> None:
    task = plan(pair(), frozen())
    terms = [f"{term}/p{stride}" for stride in (8, 16) for term in ("mask", "sfa")]
    several = [f"T{number}.{term}" for number in (1, 2) for term in terms]
    assert list(task(IMAGES, TARGETS)) == ["task/count", "task/size", *several]
    assert list(task.diagnostics()) == [f"T{number}.pearson/p{stride}" for number in (1, 2) for stride in (8, 16)]
    task.enter_stage(1)
    assert list(task(IMAGES, TARGETS)) == ["task/count", "task/size", *terms]
    assert list(task.diagnostics()) == ["pearson/p8", "pearson/p16"]


def test_the_layers_of_a_stages_only_teacher_keep_their_names() -> None:
    first, second = pair()
    one = DistillationTask(FewNeurons(), [StageConfig(1, "a")], [[first]], LOSS, 0.5)
    names = {name for name in one.trainable.state_dict() if not name.startswith("student.")}
    assert {name for name in names if ".align." in name} == {
        f"criteria.0.align.{level}.project.{kind}" for level in (0, 1) for kind in ("weight", "bias")
    }
    assert {name for name in names if name.startswith("balance.")} == {"balance.0.norms", "balance.0._extra_state"}
    both = DistillationTask(FewNeurons(), [StageConfig(1, ["a", "b"])], [[first, second]], LOSS, 0.5)
    found = {name for name in both.trainable.state_dict() if not name.startswith("student.")}
    assert found == names | {name.replace(".0.", ".0_T2.", 1) for name in names}
    both.trainable.load_state_dict(one.trainable.state_dict(), strict=False)
    assert_close(dict(both.lessons[0].criterion.state_dict()), dict(one.lessons[0].criterion.state_dict()))


def test_layers_are_reused_teacher_by_teacher() -> None:
    (first, second), stages = pair(), [StageConfig(1, ["a", "b"]), StageConfig(1, ["c", "d"], fresh=False)]
    task = DistillationTask(FewNeurons(), stages, [[first, second], [frozen(3), frozen(5)]], LOSS)
    before = task.lessons
    for lesson in before:
        randomize(lesson.criterion)
    task.enter_stage(1)
    for own, former in zip(task.lessons, before, strict=True):
        assert_close(dict(own.criterion.state_dict()), dict(former.criterion.state_dict()), rtol=0, atol=0)
    for other in ([frozen(5), frozen(3)], [frozen(3)]):
        with pytest.raises(DfmsdError, match=r"stages\.1\.fresh: .* differ in shape or number"):
            DistillationTask(FewNeurons(), stages, [[first, second], other], LOSS)


def test_a_step_trains_the_layers_of_both_and_neither_teacher() -> None:
    teachers = pair()
    theirs = [copy.deepcopy(teacher.detector.state_dict()) for teacher in teachers]
    task = plan(teachers, name="fitnet").train()
    optimizer = torch.optim.SGD(task.trainable.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in task.named_parameters()}
    torch.stack(list(task(IMAGES, TARGETS).values())).sum().backward()
    optimizer.step()
    assert not [name for name, value in task.named_parameters() if torch.equal(value, before[name])]
    for teacher, state in zip(teachers, theirs, strict=True):
        assert_close(dict(teacher.detector.state_dict()), dict(state), rtol=0, atol=0)
    assert ownership(task)["teachers"] == sum(p.numel() for t in teachers for p in t.detector.parameters())


def test_the_checks_measure_each_teachers_terms() -> None:
    task = plan(pair())
    scales = term_scales(task, BATCH)
    assert [scale.name for scale in scales] == ["task", "T1.mask", "T1.sfa", "T2.mask", "T2.sfa"]
    assert all(scale.gradient > 0 for scale in scales)
    task.lessons[1].criterion.weight = 0.0
    with pytest.raises(DfmsdError, match=r"^stage 1: T2\.mask/p8 is exactly 0 on the first batch"):
        term_scales(task, BATCH)


def test_an_error_names_the_teacher_at_fault() -> None:
    with pytest.raises(DfmsdError, match=r"stage 1, teacher coarse: student and teacher share 1 pyramid"):
        plan((frozen(), frozen(strides=(16, 32), name="coarse")))
