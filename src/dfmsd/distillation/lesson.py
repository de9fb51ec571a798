"""A lesson: one teacher of a stage, the loss that compares the student with it, and that loss's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dfmsd import losses
from dfmsd.detectors.base import Detector
from dfmsd.distillation.balance import BALANCE, GradientBalance
from dfmsd.distillation.basis import AnyCriterion, build_basis, choose_basis
from dfmsd.distillation.heads import HeadPair
from dfmsd.distillation.passes import StudentPass, TeacherPass, run_teacher
from dfmsd.distillation.queries import check_queries, compares_queries
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, FeaturePyramid, LevelSpec


class Lesson(NamedTuple):
    """One teacher of a stage with its loss, whose layers it shares with no other lesson."""

    teacher: FrozenTeacher
    criterion: AnyCriterion
    balance: GradientBalance | None
    """None if the run has no balance, the stage no labels, or the loss compares predictions only."""
    heads: HeadPair | None
    """Both detectors' dense heads if the loss compares their predictions."""
    label: str
    """Number in the stage, such as ``T2``; empty for a stage's only teacher."""
    key: str
    """Name of its layers in checkpoints, see `layers_name`."""

    @property
    def compares_queries(self) -> bool:
        """Whether the loss compares the predictions of queries."""
        return compares_queries(self.criterion)

    @property
    def measuring(self) -> bool:
        """Whether the balance measures the gradients of the terms in this step."""
        return self.balance is not None and self.balance.measures

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """The teacher's own levels that the loss uses."""
        names = {pair.teacher.name for pair in self.criterion.pairs}
        return tuple(level for level in self.teacher.detector.levels if level.name in names)

    @property
    def layers(self) -> dict[str, Tensor]:
        """State of the loss without its basis, which belongs to this teacher alone."""
        return {name: value for name, value in self.criterion.state_dict().items() if not name.startswith("basis.")}

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """``pearson/<level>`` of the last batch, and ``balance``, the factor of the terms on features if there is one.

        With several teachers in the stage the names are prefixed as in `named`.
        """
        factor = {} if self.balance is None else {BALANCE: self.balance.factor}
        return self.named(self.criterion.diagnostics | factor)

    def features(self, batch: Batch) -> FeaturePyramid:
        """Return the teacher's features, in its own basis."""
        return self.teacher.features(batch.for_teachers)

    def target(self, batch: Batch) -> FeaturePyramid:
        """Return the features that the student imitates: the teacher's, in the basis of the lesson."""
        pyramid = self.features(batch)
        return pyramid if self.criterion.basis is None else self.criterion.basis(pyramid)

    def run_teacher(self, images: Tensor, keys: Sequence[str | None] = ()) -> TeacherPass:
        """Run the teacher as far as the loss needs it.

        Only the levels that the loss uses are returned, so that the others do not stay in memory.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
            keys: cache key of each image.
        """
        pyramid, _, queries = run_teacher(self.teacher, images, keys, queries=self.compares_queries)
        used = {level.name: pyramid[level.name] for level in self.levels}
        head = None if self.heads is None else self.heads.run_teacher(used)
        return TeacherPass(used, head, queries)

    def terms(
        self, student: StudentPass, teacher: TeacherPass, *, boxes: Sequence[Tensor], size: tuple[int, int], stage: int
    ) -> dict[str, Tensor]:
        """Compare the student with the teacher.

        Args:
            student: its forward pass.
            teacher: the forward pass of this lesson's teacher on the same images.
            boxes: per image ``M x 4``, xyxy in pixels of the student's padded input.
            size: height and width of that input.
            stage: counted from 1.

        Returns:
            ``<term>/<level>`` -> scalar, scaled by the balance, with names as in `named`.
        """
        heads = self.heads.pair(student.head, teacher.head) if self.heads and student.head and teacher.head else None
        queries = losses.QueryPair(student.queries, teacher.queries) if student.queries and teacher.queries else None
        terms = self.criterion(
            student.pyramid, teacher.pyramid, boxes=boxes, size=size, stage=stage, heads=heads, queries=queries
        )
        if self.balance is not None:
            terms = self.balance(terms, sum(student.losses.values()), student.pyramid, student.labeled)
        return self.named(terms)

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Prefix names with the label, if the stage has other teachers: ``mask/p3`` -> ``T2.mask/p3``."""
        prefix = f"{self.label}." if self.label else ""
        return {f"{prefix}{name}": value for name, value in values.items()}


def build_lessons(
    student: Detector,
    stages: Sequence[StageConfig],
    teachers: Sequence[Sequence[FrozenTeacher]],
    loss: losses.LossConfig,
    balance: float | None = None,
) -> tuple[tuple[Lesson, ...], ...]:
    """Build the lessons of every stage, in the order of the stages and of their teachers.

    Args:
        student: the student.
        stages: the plan.
        teachers: the teachers of each stage.
        loss: of the run; a stage may replace it, see `losses.replace_loss`.
        balance: see `DistillationTask`.

    Raises:
        DfmsdError: student, teachers and losses do not fit together.
    """
    lessons: list[tuple[Lesson, ...]] = []
    for index, (stage, of_stage) in enumerate(zip(stages, teachers, strict=True)):
        former = lessons[-1][0] if lessons and len(lessons[-1]) == 1 else None
        built = []
        for number, teacher in enumerate(of_stage):
            try:
                own_loss = losses.replace_loss(loss, stage.loss)
                criterion = _build_criterion(student, teacher, stage, own_loss, former, first=index == 0)
                heads = _pair_predictions(student, teacher, criterion)
            except DfmsdError as error:
                raise DfmsdError(f"stage {index + 1}, teacher {teacher.name}: {error}") from error
            label = f"T{number + 1}" if len(of_stage) > 1 else ""
            built.append(
                Lesson(
                    teacher,
                    criterion,
                    _build_balance(criterion, balance if stage.labels else None),
                    heads,
                    label,
                    layers_name(index, number),
                )
            )
        _check_cut(index, built)
        lessons.append(tuple(built))
    return tuple(lessons)


def layers_name(index: int, number: int) -> str:
    """Return the name of a teacher's layers: ``0`` in the first stage, ``0_T2``, ``0_T3``, ... for further teachers.

    Args:
        index: stage, from 0.
        number: teacher in the stage, from 0.
    """
    return f"{index}_T{number + 1}" if number else str(index)


def _build_criterion(
    student: Detector,
    teacher: FrozenTeacher,
    stage: StageConfig,
    loss: losses.LossConfig,
    former: Lesson | None,
    *,
    first: bool,
) -> AnyCriterion:
    """Build the loss, a second time if the teacher is rotated: its layers then take the channels of the reference.

    Args:
        student: the student.
        teacher: the teacher.
        stage: the stage.
        loss: of the stage.
        former: the only lesson of the stage before; None if that has none, or several.
        first: whether the stage is the first one.
    """
    criterion = losses.build(loss, student.levels, teacher.levels)
    taught = former.criterion if former else None
    name = choose_basis(
        stage.basis,
        criterion,
        taught,
        student,
        teacher.detector,
        same_teacher=former is not None and former.teacher is teacher,
        learned=stage.labels or not first,
    )
    basis = build_basis(name, criterion, teacher.levels, taught)
    return criterion if basis is None else losses.build(loss, student.levels, teacher.levels, basis=basis)


def _pair_predictions(student: Detector, teacher: FrozenTeacher, criterion: AnyCriterion) -> HeadPair | None:
    """Check that the detectors have the predictions that a loss compares, and pair their heads if it compares these."""
    if compares_queries(criterion):
        check_queries(student, teacher.detector)
    compared = [method for method in criterion.methods if isinstance(method, losses.HeadMethod)]
    return HeadPair(student, teacher, compared) if compared else None


def _build_balance(criterion: AnyCriterion, ratio: float | None) -> GradientBalance | None:
    terms = criterion.feature_terms
    return GradientBalance(terms, ratio) if terms and ratio is not None else None


def _check_cut(index: int, lessons: Sequence[Lesson]) -> None:
    """Refuse a stage whose teachers cut the student's head in different places."""
    cuts = {lesson.heads.reused for lesson in lessons if lesson.heads is not None}
    if len(cuts) > 1:
        raise DfmsdError(
            f"stage {index + 1}: the teachers' heads differ in depth, so the loss would cut the student's head in "
            f"several places; set loss.reused to {min(cuts)}"
        )
