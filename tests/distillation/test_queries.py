"""Losses on the predictions of queries in a task: one pass of each detector, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.helpers.few_neurons import IMAGES, TARGETS, FewNeurons
from torch import Tensor, nn
from torch.testing import assert_close

from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig
from dfmsd.losses.functional import detrdistill
from dfmsd.types import FeaturePyramid, Queries, Target

TERMS = {"match_cls/queries", "match_l1/queries", "match_giou/queries"}


class FewQueries(FewNeurons):
    """A few neurons that predict a class and a box for each of some queries."""

    def __init__(self, queries: int, channels: int = 2) -> None:
        super().__init__(channels)
        self.head = nn.Linear(channels, 5 * queries)

    @property
    def has_queries(self) -> bool:
        return True

    def features_with_queries(self, images: Tensor) -> tuple[FeaturePyramid, Queries]:
        pyramid = self.features(images)
        values = self.head(pyramid["p16"].mean((2, 3))).unflatten(1, (-1, 5))
        return pyramid, Queries(values[..., :1], values[..., 1:].sigmoid())

    def forward_with_queries(
        self, images: Tensor, targets: Sequence[Target]
    ) -> tuple[FeaturePyramid, dict[str, Tensor], Queries]:
        pyramid, queries = self.features_with_queries(images)
        return pyramid, {"size": pyramid["p8"].square().mean()}, queries


def task_of(student: FewNeurons, *teachers: FewNeurons, loss: LossConfig = "detrdistill") -> DistillationTask:
    frozen = [FrozenTeacher(teacher, f"T{number}") for number, teacher in enumerate(teachers, 1)]
    return DistillationTask(student, [StageConfig(1, [each.name for each in frozen])], [frozen], loss)


@pytest.mark.parametrize("loss", ["detrdistill", [{"name": "dfmsd"}, {"name": "detrdistill"}]])
def test_each_detector_runs_once_and_the_terms_are_those_of_its_predictions(loss: LossConfig) -> None:
    student, teacher = FewQueries(4), FewQueries(6, channels=3)
    task = task_of(student, teacher, loss=loss)
    named = task(IMAGES, TARGETS)
    assert len(student.seen) == len(teacher.seen) == 1
    queries = student.features_with_queries(IMAGES)[1], teacher.features_with_queries(IMAGES)[1]
    found = {name: value for name, value in named.items() if name.startswith("match")}
    assert set(found) == TERMS
    student.drop.p = 0.0
    task = task_of(student, teacher, loss=loss)
    named = task(IMAGES, TARGETS)
    queries = student.features_with_queries(IMAGES)[1], teacher.features_with_queries(IMAGES)[1]
    assert_close(torch.stack([named[name] for name in found]), torch.stack(detrdistill(*queries)))
    assert ("mask/p8" in named) == (loss != "detrdistill")


def test_a_step_teaches_the_student_alone() -> None:
    student, teacher = FewQueries(4), FewQueries(4)
    task = task_of(student, teacher)
    assert not list(task.trainable["criteria"].parameters())
    torch.stack([value for name, value in task(IMAGES, TARGETS).items() if name in TERMS]).sum().backward()
    assert student.head.weight.grad is not None
    assert student.stem.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_falls_and_several_teachers_add_up() -> None:
    task = task_of(FewQueries(4), FewQueries(4), FewQueries(6)).train()
    optimizer = torch.optim.Adam(task.trainable.parameters(), lr=0.02)
    totals = []
    for _ in range(30):
        optimizer.zero_grad()
        named = task(IMAGES, TARGETS)
        assert {f"T{number}.{name}" for number in (1, 2) for name in TERMS} < set(named)
        total = torch.stack([value for name, value in named.items() if "match" in name]).sum()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (FewQueries(4), FewNeurons(), "matches the queries of two detectors, and the teacher has none; use detectors"),
        (FewNeurons(), FewQueries(4), "and the student has none; use detectors of transformers"),
    ],
)
def test_a_detector_without_queries_is_refused_by_name(student: FewNeurons, teacher: FewNeurons, message: str) -> None:
    with pytest.raises(DfmsdError, match=f"^stage 1, teacher T1: detrdistill .*{message}") as refusal:
        task_of(student, teacher)
    assert "\n" not in str(refusal.value)


def test_other_classes_are_refused() -> None:
    teacher = FewQueries(4)
    teacher.class_names = ("other",)
    with pytest.raises(DfmsdError, match=r"differ: \('thing',\) \(student\), \('other',\) \(teacher\); train the teac"):
        task_of(FewQueries(4), teacher)


@pytest.mark.parametrize("basis", ["student", "former"])
def test_there_is_nothing_to_rotate(basis: str) -> None:
    teachers = [FrozenTeacher(FewQueries(4), name) for name in ("a", "b")]
    stages = [StageConfig(1, "a"), StageConfig(1, "b", basis=basis)]  # type: ignore[arg-type]
    with pytest.raises(DfmsdError, match=r"compares predictions, .* choose basis: own"):
        DistillationTask(FewQueries(4), stages, [[teacher] for teacher in teachers], "detrdistill")
    task = DistillationTask(FewQueries(4), [StageConfig(1, "a")] * 2, [[each] for each in teachers], "detrdistill")
    assert task.lessons_of(1)[0].criterion.basis is None
