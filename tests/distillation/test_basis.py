"""Teachers rotated into another's channels: what the task does with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.helpers.few_neurons import IMAGES, LOSS, TARGETS, FewNeurons, frozen
from torch.nn.functional import interpolate
from torch.testing import assert_close

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.distillation.stages import StageConfig, check_stages, steps_into_stage
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.losses.basis import BasisName
from dfmsd.types import Batch

PKD = {"name": "pkd"}


def batch_of(images: torch.Tensor) -> Batch:
    return Batch(images, [], [], [], [])


def task_of(
    *teachers: FrozenTeacher | Sequence[FrozenTeacher],
    basis: BasisName,
    student: FewNeurons | None = None,
    loss: Any = PKD,
) -> DistillationTask:
    """Stages of one epoch, the last of which has a basis."""
    each = [[teacher] if isinstance(teacher, FrozenTeacher) else list(teacher) for teacher in teachers]
    stages = [StageConfig(1, [teacher.name for teacher in stage]) for stage in each[:-1]]
    last = StageConfig(1, [teacher.name for teacher in each[-1]], basis=basis)
    task = DistillationTask(student or FewNeurons(), [*stages, last], each, loss)
    task.enter_stage(len(stages))
    return task


def test_a_basis_is_fitted_once_and_saved_with_the_layers() -> None:
    task = task_of(frozen(2, name="a"), frozen(2, name="b"), basis="former")
    assert len(task.unfitted) == 1
    fits = task.fit_bases([batch_of(IMAGES)])
    assert set(fits[""]) == {"t8", "t16"}
    assert task.unfitted == ()
    other = task_of(frozen(2, name="a"), frozen(2, name="b"), basis="former")
    other.load_state_dict(task.state_dict())
    assert other.unfitted == ()


def test_a_teacher_in_its_own_basis_has_the_loss_of_no_rotation() -> None:
    torch.manual_seed(0)
    teacher, student = frozen(2), FewNeurons()
    plain = task_of(teacher, teacher, basis="own", student=student)
    rotated = task_of(teacher, teacher, basis="former", student=student)  # the former teacher is the same one
    images = interpolate(torch.rand(2, 3, 4, 8), scale_factor=8)  # whose features vary far more than the losses' eps
    rotated.fit_bases([batch_of(images)])
    rotation = rotated.lessons[0].criterion.basis.maps["t8"].weight
    assert_close(rotation / rotation.diagonal(), torch.eye(2), atol=1e-3, rtol=0)
    terms = [task.eval()(images, TARGETS) for task in (plain, rotated)]
    assert_close(terms[0], terms[1], atol=0, rtol=0.03)  # the second standardization adds its eps once more


def test_a_teacher_of_other_channels_needs_no_convolution() -> None:
    own = task_of(frozen(3), basis="own")
    student = task_of(frozen(3), basis="student")
    assert sum(p.numel() for p in own.lessons[0].criterion.parameters()) > 0
    assert sum(p.numel() for p in student.lessons[0].criterion.parameters()) == 0
    student.fit_bases([batch_of(IMAGES)])
    assert all(term.isfinite() for term in student(IMAGES, TARGETS).values())


def test_the_fit_leaves_the_student_in_its_mode_and_without_statistics() -> None:
    task = task_of(frozen(2), basis="student").train()
    before = task.student.norm.running_mean.clone()
    task.fit_bases([batch_of(IMAGES)])
    assert task.student.training
    assert torch.equal(task.student.norm.running_mean, before)


def test_the_student_learns_alone_until_the_basis_is_fitted() -> None:
    task = task_of(frozen(2), basis="student")
    task.warming_up = True
    assert all(name.startswith("task/") for name in task(IMAGES, TARGETS))
    task.warming_up = False
    assert any(name.startswith("pkd/") for name in task(IMAGES, TARGETS))


def test_several_teachers_share_the_basis_of_the_student() -> None:
    task = task_of([frozen(2, name="a"), frozen(3, name="b")], basis="student")
    fits = task.fit_bases([batch_of(IMAGES)])
    assert set(fits) == {"T1", "T2"}
    assert {name.partition("/")[0] for name in task(IMAGES, TARGETS)} == {"task", "T1.pkd", "T2.pkd"}


def test_caches_keep_the_teachers_own_features() -> None:
    teacher = frozen(3)
    task = task_of(teacher, basis="student")
    assert task.levels_in_use(0) == {teacher: set(teacher.levels)}


def test_a_basis_of_a_basis_is_that_of_the_first_teacher() -> None:
    torch.manual_seed(0)
    first, second, third = frozen(2, name="a"), frozen(3, name="b"), frozen(4, name="c")
    stages = [StageConfig(1, "a"), StageConfig(1, "b", basis="former"), StageConfig(1, "c", basis="former")]
    task = DistillationTask(FewNeurons(), stages, [[first], [second], [third]], PKD)
    for index in (1, 2):
        task.enter_stage(index)
        task.fit_bases([batch_of(IMAGES)])
        assert [level.channels for level in task.lessons[0].criterion.basis.levels] == [2, 2]


def test_a_teacher_is_rotated_into_the_levels_that_it_teaches() -> None:
    """Open ends of size ranges count as an octave, so that fewer levels of the teacher could be paired differently."""
    student = build_detector(DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=16), ["a"])
    model = build_detector(DetectorConfig("ssdlite", "mobilenetv3_small_050", fpn_channels=16), ["a"])
    teacher = FrozenTeacher(model, "b", scale=1.5)
    task = DistillationTask(student, [StageConfig(1, "b", basis="student")], [[teacher]], PKD)
    criterion = task.lessons[0].criterion
    taught = {pair.teacher.name: pair.student.name for pair in criterion.pairs}
    assert {name: level.name for name, level in criterion.basis.references.items()} == taught


def test_a_level_with_two_references_is_refused() -> None:
    student, teacher = FewNeurons(2, (8, 16, 32)), frozen(2, (8, 16, 32))
    pairings = [{"p8": "t8", "p16": "t16"}, {"p16": "t8", "p32": "t32"}]
    loss = [{"name": name, "pairing": pairs} for name, pairs in zip(("pkd", "mgd"), pairings, strict=True)]
    with pytest.raises(DfmsdError, match="the student's p8 and p16 by the same t8 of the teacher"):
        task_of(teacher, basis="student", student=student, loss=loss)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([StageConfig(1, "a", basis="former")], "stages.0.basis: former needs a stage before it"),
        ([StageConfig(1, "a"), StageConfig(1, basis="student")], "stages.1.basis: student rotates a teacher"),
        ([StageConfig(1, ["a", "b"]), StageConfig(1, "c", basis="former")], "exactly one teacher"),
    ],
)
def test_impossible_bases_are_refused(stages: list[StageConfig], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        check_stages(stages)


def test_a_level_that_the_former_teacher_lacks_is_named() -> None:
    strides = (8, 16, 32)
    student = FewNeurons(2, strides)
    with pytest.raises(DfmsdError, match="former stage does not teach p32"):
        task_of(frozen(2, (8, 16), "a"), frozen(2, strides, "b"), basis="former", student=student, loss=LOSS)


@pytest.mark.parametrize(("epoch", "batch", "expected"), [(0, 3, 3), (1, 0, 10), (2, 0, 0), (3, 4, 14)])
def test_steps_are_counted_from_the_start_of_the_stage(epoch: int, batch: int, expected: int) -> None:
    assert steps_into_stage([StageConfig(2, "a"), StageConfig(2, "b")], epoch, batch, 10) == expected


class Unlike(FewNeurons):
    """A detector of another kind than `FewNeurons`."""


def kinds(task: DistillationTask) -> list[str]:
    """The reference of each stage's first teacher."""
    bases = [task.lessons_of(index)[0].criterion.basis for index in range(len(task.stages))]
    return ["own" if basis is None else "former" if basis.former else "student" for basis in bases]


def unlike(channels: int = 2, name: str = "u") -> FrozenTeacher:
    return FrozenTeacher(Unlike(channels, prefix="t"), name)


@pytest.mark.parametrize(
    ("teachers", "expected"),
    [
        ([frozen(2)], ["own"]),
        ([unlike()], ["student"]),
        ([unlike(3)], ["own"]),  # the 1x1 convolution keeps all of its channels
        ([frozen(2, name="a"), unlike()], ["own", "former"]),
        ([frozen(3, name="a"), unlike(3)], ["own", "former"]),  # as wide as each other is enough
        ([frozen(2, name="a"), unlike(3)], ["own", "own"]),
        ([unlike(), frozen(2)], ["student", "former"]),
        ([[frozen(2, name="a"), frozen(2, name="b")], unlike()], ["own", "student"]),
    ],
)
def test_the_automatic_basis(teachers: list[Any], expected: list[str]) -> None:
    assert kinds(task_of(*teachers, basis="auto", loss=LOSS)) == expected


def test_published_methods_take_the_teacher_as_it_is() -> None:
    assert kinds(task_of(unlike(), basis="auto", loss=PKD)) == ["own"]
    both = [LOSS, {"name": "mgd"}]
    assert kinds(task_of(unlike(), basis="auto", loss=both)) == ["own"]  # type: ignore[arg-type]
    assert kinds(task_of(unlike(), basis="student", loss=PKD)) == ["student"]


def test_a_student_that_keeps_its_channels_needs_no_rotation() -> None:
    assert kinds(task_of(frozen(2), unlike(), basis="auto", loss={**LOSS, "project": True})) == ["own", "own"]


def test_reused_layers_leave_each_teacher_its_basis() -> None:
    first, second = frozen(2, name="a"), unlike()
    stages = [StageConfig(1, "a"), StageConfig(1, "u", fresh=False)]
    task = DistillationTask(FewNeurons(), stages, [[first], [second]], LOSS)
    task.enter_stage(1)
    assert len(task.unfitted) == 1
    former, current = (task.lessons_of(index)[0].criterion.state_dict() for index in (0, 1))
    assert former.keys() < current.keys()
    assert all(torch.equal(current[name], value) for name, value in former.items())
