"""Distillation training step: a student under its teachers, as named losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from dfmsd import losses
from dfmsd.detectors.base import Detector
from dfmsd.distillation.balance import BALANCE, GradientBalance
from dfmsd.distillation.basis import build_basis, choose_basis
from dfmsd.distillation.compiled import Backend, CompiledParts
from dfmsd.distillation.heads import HeadPair
from dfmsd.distillation.queries import check_queries, compares_queries
from dfmsd.distillation.stages import StageConfig, adds_labels
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.losses.basis import Correlation
from dfmsd.types import Batch, FeaturePyramid, LevelSpec, Queries, Target
from dfmsd.utils.shapes import frame_of


class Lesson(NamedTuple):
    """One teacher of a stage with its loss, whose layers and factors it shares with no other."""

    teacher: FrozenTeacher
    criterion: losses.Criterion | losses.CriterionSum
    balance: GradientBalance | None
    """None without a balance, in a stage without labels, and for a loss on predictions alone."""
    heads: HeadPair | None
    """Both detectors' dense heads if the loss compares their predictions."""
    label: str
    """Number in the stage, such as ``T2``; empty for a stage's only teacher."""

    @property
    def compares_queries(self) -> bool:
        """Whether the loss compares the predictions of queries."""
        return compares_queries(self.criterion)

    @property
    def measuring(self) -> bool:
        """Whether the balance measures the gradients of the terms in this step."""
        return self.balance is not None and self.balance.measures

    def target(self, batch: Batch) -> FeaturePyramid:
        """Return the features that the student imitates: the teacher's, in the basis of the lesson."""
        pyramid = _features(self.teacher, batch)
        return pyramid if self.criterion.basis is None else self.criterion.basis(pyramid)

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Prefix names with the label, if the stage has other teachers: ``mask/p3`` -> ``T2.mask/p3``."""
        prefix = f"{self.label}." if self.label else ""
        return {f"{prefix}{name}": value for name, value in values.items()}


class StudentPass(NamedTuple):
    """Outputs of a forward pass of the student."""

    pyramid: FeaturePyramid
    """Of all images."""
    labeled: FeaturePyramid
    """Of the images with targets, on which the losses are computed."""
    losses: dict[str, Tensor]
    """The detector's own losses."""
    queries: Queries | None = None
    """The predictions of its queries if a loss compares them."""


class TeacherPass(NamedTuple):
    """Outputs of a forward pass of a teacher."""

    pyramid: FeaturePyramid
    queries: Queries | None = None
    """The predictions of its queries if a loss compares them."""


class DistillationTask(nn.Module):
    """A student, the training-only layers of every stage, and the teachers, which stay outside the module tree.

    All stages' layers exist from the start, so that one optimizer, one checkpoint layout and one DDP wrapper serve the
    whole run.

    Args:
        student: trained in place.
        stages: the plan.
        teachers: the teachers of each stage: none, one, or several whose losses are added up.
        loss: ``name`` and options of the loss, or a list of such; for the loss of a stage see `losses.replace_loss`.
        balance: target norm of a teacher's gradient relative to the task's, see `GradientBalance`; None keeps the given
            weights, as do stages without labels, which have no loss of the task's.

    Attributes:
        trainable: student, loss layers and balances, which hold every parameter and buffer of this module; the part
            that an optimizer, DDP and checkpoints use.
        stage: index of the current stage, from 0.
        compiled: the parts that run compiled, after `compile_parts`.
        warming_up: whether the student learns without the teachers whose basis is not fitted yet.

    Raises:
        DfmsdError: student, teachers and losses do not fit together.
    """

    def __init__(
        self,
        student: Detector,
        stages: Sequence[StageConfig],
        teachers: Sequence[Sequence[FrozenTeacher]],
        loss: losses.LossConfig,
        balance: float | None = None,
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.teachers = tuple(tuple(of_stage) for of_stage in teachers)
        self.stage = 0
        self.compiled: CompiledParts | None = None
        self.warming_up = False
        self.heads: dict[str, HeadPair] = {}
        criteria, balances = nn.ModuleDict(), nn.ModuleDict()
        for index, (stage, of_stage) in enumerate(zip(self.stages, self.teachers, strict=True)):
            former = criteria[layers_name(index - 1, 0)] if index and len(self.teachers[index - 1]) == 1 else None
            assert former is None or isinstance(former, losses.Criterion | losses.CriterionSum)
            for number, teacher in enumerate(of_stage):
                key = layers_name(index, number)
                try:
                    own_loss = losses.replace_loss(loss, stage.loss)
                    criterion = losses.build(own_loss, student.levels, teacher.levels)
                    name = choose_basis(
                        stage.basis,
                        criterion,
                        former,
                        student,
                        teacher.detector,
                        same_teacher=former is not None and self.teachers[index - 1][0] is teacher,
                        learned=stage.labels or index > 0,
                    )
                    basis = build_basis(name, criterion, teacher.levels, former)
                    if basis is not None:
                        criterion = losses.build(own_loss, student.levels, teacher.levels, basis=basis)
                    methods = [method for method in criterion.methods if isinstance(method, losses.HeadMethod)]
                    if methods:
                        self.heads[key] = HeadPair(student, teacher, methods)
                    if compares_queries(criterion):
                        check_queries(student, teacher.detector)
                except DfmsdError as error:
                    raise DfmsdError(f"stage {index + 1}, teacher {teacher.name}: {error}") from error
                criteria[key] = criterion
                if balance is not None and stage.labels and criterion.feature_terms:
                    balances[key] = GradientBalance(criterion.feature_terms, balance)
        self.trainable = nn.ModuleDict({"student": student, "criteria": criteria, "balance": balances})
        for index in range(len(self.stages)):
            self._check_stage(index)

    @property
    def student(self) -> Detector:
        """The detector that is trained and delivered."""
        student = self.trainable["student"]
        assert isinstance(student, Detector)
        return student

    @property
    def labels(self) -> bool:
        """Whether the current stage has labels."""
        return self.stages[self.stage].labels

    @property
    def every_teacher(self) -> tuple[FrozenTeacher, ...]:
        """The teachers of all stages, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(self.teachers)))

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """The teachers of the current stage with their losses."""
        return self.lessons_of(self.stage)

    def lessons_of(self, index: int) -> tuple[Lesson, ...]:
        """Return the teachers of a stage with their losses.

        Args:
            index: stage, from 0.
        """
        criteria, balances = (dict(self.trainable[kind].named_children()) for kind in ("criteria", "balance"))
        lessons = []
        for number, teacher in enumerate(self.teachers[index]):
            key, label = layers_name(index, number), f"T{number + 1}" if len(self.teachers[index]) > 1 else ""
            criterion: Any = criteria[key]
            balance: Any = balances.get(key)
            lessons.append(Lesson(teacher, criterion, balance, self.heads.get(key), label))
        return tuple(lessons)

    def compile_parts(self, backend: Backend = "inductor") -> list[str]:
        """Run student, teachers and losses through ``torch.compile`` in every later call of the task.

        Each part is compiled on its first call, and again for other shapes; see `CompiledParts`. In a step that a
        balance measures, the teachers alone are.

        Args:
            backend: of ``torch.compile``.

        Returns:
            The detectors that stay as they are, since it is not known which of their layers can be compiled.
        """
        student = self.student.compilable()
        teachers = {teacher.name: teacher.detector.compilable() for teacher in self.every_teacher}
        criteria = self.trainable["criteria"]
        assert isinstance(criteria, nn.ModuleDict)
        self.compiled = CompiledParts(
            chain.from_iterable(teachers.values()), chain(student, criteria.values()), backend
        )
        plain = [f"teacher {name}" for name, layers in teachers.items() if not layers]
        return plain if student else ["the student", *plain]

    def enter_stage(self, index: int, *, begins: bool = True) -> None:
        """Switch to a stage.

        Args:
            index: stage, from 0.
            begins: False when a run is resumed within the stage, whose layers are then in the checkpoint.
        """
        self.stage = index
        used = self.levels_in_use(index)
        for teacher in self.every_teacher:
            if teacher.cache is not None and teacher not in used:
                teacher.cache.store.release()
        if begins and self._reuses_layers(index):
            for lesson, former in zip(self.lessons, self.lessons_of(index - 1), strict=True):
                lesson.criterion.load_state_dict(_layers(former.criterion), strict=False)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target],
        keys: Sequence[str | None] = (),
        larger: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the named losses of one batch; the total loss is their sum.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
            targets: ground truth of the first images. The remaining images are used by the distillation terms only, and
                ignored in a stage without a teacher. A stage without labels ignores the ground truth.
            keys: content key of each image, for teachers with a cache.
            larger: the same images for teachers that see more pixels, ``N x 3 x H' x W'``.

        Returns:
            ``task/<detector's loss>``, if the stage has labels, and ``<term>/<level>`` -> scalar; with several teachers
            in the stage ``T<number>.<term>/<level>``, numbered from 1 in the stage's order.
        """
        lessons = self.lessons
        measuring = any(lesson.measuring for lesson in lessons)
        with self.compiled.active(measuring=measuring) if self.compiled else nullcontext():
            return self._compute(lessons, images, self.known(targets), keys, larger)

    def _compute(
        self,
        lessons: Sequence[Lesson],
        images: Tensor,
        targets: Sequence[Target],
        keys: Sequence[str | None],
        larger: Tensor | None,
    ) -> dict[str, Tensor]:
        if not lessons:
            images = images[: len(targets)]
        seen = images if larger is None else larger
        passes = self._run_teachers(seen, keys)  # first, so that their peak memory is over before the student's
        (pyramid, labeled, task_losses, queries), heads = self._run_student(images, targets, lessons, passes)
        boxes = [target["boxes"] for target in targets] + [images.new_empty(0, 4)] * (len(images) - len(targets))
        named = {f"task/{name}": value for name, value in task_losses.items()}
        for lesson, paired in zip(lessons, heads, strict=True):
            if self.warming_up and lesson.criterion.basis is not None:
                continue
            of_teacher = passes[lesson.teacher]
            both = losses.QueryPair(queries, of_teacher.queries) if queries and of_teacher.queries else None
            terms = lesson.criterion(
                pyramid,
                of_teacher.pyramid,
                boxes=boxes,
                size=frame_of(images),
                stage=self.stage + 1,
                heads=paired,
                queries=both,
            )
            if lesson.balance is not None:
                terms = lesson.balance(terms, sum(task_losses.values()), pyramid, labeled)
            named |= lesson.named(terms)
        return named

    def levels_in_use(self, index: int) -> dict[FrozenTeacher, set[LevelSpec]]:
        """Return each teacher's own levels that the losses of a stage use.

        Args:
            index: stage, from 0.
        """
        used: dict[FrozenTeacher, set[LevelSpec]] = {}
        for lesson in self.lessons_of(index):
            names = {pair.teacher.name for pair in lesson.criterion.pairs}
            used.setdefault(lesson.teacher, set()).update(
                level for level in lesson.teacher.detector.levels if level.name in names
            )
        return used

    @property
    def unfitted(self) -> tuple[Lesson, ...]:
        """The lessons of the current stage whose basis is not fitted yet."""
        return tuple(
            lesson
            for lesson in self.lessons
            if lesson.criterion.basis is not None and not lesson.criterion.basis.fitted
        )

    def fit_bases(self, batches: Sequence[Batch]) -> dict[str, dict[str, Correlation]]:
        """Fit the bases of the current stage.

        Args:
            batches: images on the device of the student and the teachers.

        Returns:
            Label of the teacher -> its level -> correlation of equal channels with the reference, before and after.
        """
        fits = {}
        for lesson in self.unfitted:
            basis, reference = lesson.criterion.basis, self._student_features
            assert basis is not None
            if basis.former:
                former = self.lessons_of(self.stage - 1)[0]
                former.teacher.to(batches[0].images.device)
                reference = former.target
            fits[lesson.label] = basis.fit_to(batches, partial(_features, lesson.teacher), reference)
        return fits

    @torch.no_grad()
    def _student_features(self, batch: Batch) -> FeaturePyramid:
        training = self.student.training
        self.student.eval()
        pyramid = self.student.features(batch.images)
        self.student.train(training)
        return pyramid

    def diagnostics(self) -> dict[str, Tensor]:
        """Return ``pearson/<level>`` of the last batch and ``balance``, the factor of the terms on features.

        With several teachers in the stage the names start with ``T<number>.``.
        """
        named: dict[str, Tensor] = {}
        for lesson in self.lessons:
            factor = {} if lesson.balance is None else {BALANCE: lesson.balance.factor}
            named |= lesson.named(lesson.criterion.diagnostics | factor)
        return named

    def known(self, targets: Sequence[Target]) -> Sequence[Target]:
        """Return the targets that the current stage uses: none in a stage without labels."""
        return targets if self.labels else ()

    def student_pass(self, images: Tensor, targets: Sequence[Target]) -> StudentPass:
        """Run the student on all images and compute its losses on the first ones, which have targets.

        Without targets its head does not run, so that no weight and no statistic of it changes.
        """
        if not targets:
            pyramid = self.student.features(images)
            return StudentPass(pyramid, pyramid, {})
        if len(images) == len(targets):
            pyramid, named = self.student(images, targets)
            return StudentPass(pyramid, pyramid, named)
        with_targets, others = images.tensor_split([len(targets)])
        labeled, named = self.student(with_targets, targets)
        rest = self.student.features(others)
        return StudentPass({name: torch.cat([level, rest[name]]) for name, level in labeled.items()}, labeled, named)

    @property
    def queried(self) -> set[FrozenTeacher]:
        """The teachers of the current stage whose queries a loss compares."""
        return {lesson.teacher for lesson in self.lessons if lesson.compares_queries}

    def teacher_pass(self, teacher: FrozenTeacher, images: Tensor, keys: Sequence[str | None] = ()) -> TeacherPass:
        """Run a teacher of the current stage as far as its losses need it."""
        if teacher in self.queried:
            return TeacherPass(*teacher.features_with_queries(images))
        return TeacherPass(teacher.features(images, keys))

    def _run_teachers(self, images: Tensor, keys: Sequence[str | None]) -> dict[FrozenTeacher, TeacherPass]:
        """Return only the levels that the losses use, so that the others do not stay in memory."""
        passes = {}
        for teacher, levels in self.levels_in_use(self.stage).items():
            pyramid, queries = self.teacher_pass(teacher, images, keys)
            passes[teacher] = TeacherPass({level.name: pyramid[level.name] for level in levels}, queries)
        return passes

    def _run_student(
        self,
        images: Tensor,
        targets: Sequence[Target],
        lessons: Sequence[Lesson],
        passes: Mapping[FrozenTeacher, TeacherPass],
    ) -> tuple[StudentPass, Sequence[dict[str, losses.HeadLevel] | None]]:
        """Run the student once, and pair its heads with the teacher's for each lesson that compares predictions."""
        pairs = [lesson.heads for lesson in lessons if lesson.heads is not None]
        if self.queried:
            pyramid, named, queries = self.student.forward_with_queries(images, targets)
            return StudentPass(pyramid, pyramid, named, queries), [None] * len(lessons)
        if not pairs:
            return self.student_pass(images, targets), [None] * len(lessons)
        of_teachers = [pair.run_teacher(passes[pair.teacher].pyramid) for pair in pairs]
        pyramid, named, of_student = self.student.forward_with_head(images, targets, pairs[0].reused)
        paired = [pair.pair(of_student, of_teacher) for pair, of_teacher in zip(pairs, of_teachers, strict=True)]
        return StudentPass(pyramid, pyramid, named), paired

    def _reuses_layers(self, index: int) -> bool:
        return not self.stages[index].fresh or (adds_labels(self.stages, index) and self._same_layers(index))

    def _same_layers(self, index: int) -> bool:
        """Return whether the layers of a stage and of the one before are alike in number and shape."""
        return _shapes(self.lessons_of(index)) == _shapes(self.lessons_of(index - 1))

    def _check_stage(self, index: int) -> None:
        """Refuse a stage whose teachers contradict each other or the stage before."""
        cuts = {lesson.heads.reused for lesson in self.lessons_of(index) if lesson.heads is not None}
        if len(cuts) > 1:
            raise DfmsdError(
                f"stage {index + 1}: the teachers' heads differ in depth, so the loss would cut the student's head in "
                f"several places; set loss.reused to {min(cuts)}"
            )
        if not self.stages[index].fresh and not self._same_layers(index):
            raise DfmsdError(
                f"stages.{index}.fresh: the layers of stages {index} and {index + 1} differ in shape or number, so "
                "they cannot be reused; set fresh: true"
            )


def layers_name(index: int, number: int) -> str:
    """Return the name of a teacher's layers: ``0`` in the first stage, ``0_T2``, ``0_T3``, ... for further teachers.

    Args:
        index: stage, from 0.
        number: teacher in the stage, from 0.
    """
    return f"{index}_T{number + 1}" if number else str(index)


def _layers(criterion: nn.Module) -> dict[str, Tensor]:
    """Return the state of a loss without its basis, which belongs to one teacher."""
    return {name: value for name, value in criterion.state_dict().items() if not name.startswith("basis.")}


def _shapes(lessons: Sequence[Lesson]) -> list[dict[str, Size]]:
    return [{name: value.shape for name, value in _layers(lesson.criterion).items()} for lesson in lessons]


def _features(teacher: FrozenTeacher, batch: Batch) -> FeaturePyramid:
    return teacher.features(batch.for_teachers)
