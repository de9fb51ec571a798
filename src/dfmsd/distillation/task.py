"""A training step of a student under its teachers, as named losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from dfmsd import losses
from dfmsd.detectors.base import Detector
from dfmsd.distillation.balance import BalanceBy, GradientBalance, balanced_groups
from dfmsd.distillation.heads import HeadPair
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import FeaturePyramid, LevelSpec, Target


class Lesson(NamedTuple):
    """One teacher of a stage, and what its loss is made of: the layers and factors are its own."""

    teacher: FrozenTeacher
    criterion: losses.Criterion | losses.CriterionSum
    balance: GradientBalance | None
    heads: HeadPair | None
    """Where the loss compares predictions."""
    label: str
    """Its number in the stage, such as ``T2``; empty for a stage's only teacher."""

    @property
    def measuring(self) -> bool:
        """Whether the balance still measures the gradients of the terms."""
        return self.balance is not None and not self.balance.settled

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Tell terms from those of the stage's other teachers: ``mask/p3`` -> ``T2.mask/p3``."""
        prefix = f"{self.label}." if self.label else ""
        return {f"{prefix}{name}": value for name, value in values.items()}


class StudentPass(NamedTuple):
    """What a forward pass of the student gives."""

    pyramid: FeaturePyramid
    """Of all images."""
    labeled: FeaturePyramid
    """Of those with targets, which the losses come from."""
    losses: dict[str, Tensor]
    """The detector's own."""


class DistillationTask(nn.Module):
    """The student, the training-only layers of every stage, and the teachers, who stay outside the module tree.

    All stages' layers exist from the start, so that one optimiser, one checkpoint layout and one DDP wrapper
    serve the whole run.

    Args:
        student: trained in place.
        stages: the plan.
        teachers: those of each stage: none, one, or several whose losses are added up.
        loss: ``name`` and options of the loss, or a list of such; for a stage's own see `losses.replace_loss`.
        balance: size of their gradients relative to the task's, see `GradientBalance`; None keeps the
            stated weights.
        balance_by: each ``term``, or the whole ``loss`` of a teacher.

    Attributes:
        trainable: student, alignment and generation: what the optimiser, DDP and resume see. Holds every
            parameter and buffer of this module.
        stage: index of the current stage, from 0.
        compiled: whether `compile_losses` was called.
    """

    def __init__(
        self,
        student: Detector,
        stages: Sequence[StageConfig],
        teachers: Sequence[Sequence[FrozenTeacher]],
        loss: losses.LossConfig,
        balance: float | None = None,
        balance_by: BalanceBy = "term",
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.teachers = tuple(tuple(together) for together in teachers)
        self.stage = 0
        self.compiled = False
        self.heads: dict[str, HeadPair] = {}
        criteria, balances = nn.ModuleDict(), nn.ModuleDict()
        for index, (stage, together) in enumerate(zip(self.stages, self.teachers, strict=True)):
            for number, teacher in enumerate(together):
                key = layers_name(index, number)
                try:
                    criterion = losses.build_sum(losses.replace_loss(loss, stage.loss), student.levels, teacher.levels)
                    self._pair_heads(key, student, teacher, criterion)
                except DfmsdError as error:
                    raise DfmsdError(f"stage {index + 1}, teacher {teacher.name}: {error}") from error
                criteria[key] = criterion
                if balance is not None:
                    balances[key] = GradientBalance(balanced_groups(criterion.feature_terms, balance_by), balance)
        self.trainable = nn.ModuleDict({"student": student, "criteria": criteria, "balance": balances})
        for index in range(len(self.stages)):
            self._check_stage(index)

    @property
    def student(self) -> Detector:
        """The detector that is handed over in the end."""
        student = self.trainable["student"]
        assert isinstance(student, Detector)
        return student

    @property
    def every_teacher(self) -> tuple[FrozenTeacher, ...]:
        """The teachers of all stages, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(self.teachers)))

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """The current stage's lessons."""
        return self.lessons_of(self.stage)

    def lessons_of(self, index: int) -> tuple[Lesson, ...]:
        """Give what each teacher of a stage teaches.

        Args:
            index: of the stage, from 0.
        """
        criteria, balances = (dict(self.trainable[kind].named_children()) for kind in ("criteria", "balance"))
        lessons = []
        for number, teacher in enumerate(self.teachers[index]):
            key, label = layers_name(index, number), f"T{number + 1}" if len(self.teachers[index]) > 1 else ""
            criterion: Any = criteria[key]
            balance: Any = balances.get(key)
            lessons.append(Lesson(teacher, criterion, balance, self.heads.get(key), label))
        return tuple(lessons)

    def compile_losses(self, backend: str = "inductor") -> None:
        """Let ``torch.compile`` make one kernel of many in the losses of every stage, on their first call.

        Args:
            backend: of ``torch.compile``.
        """
        self.compiled = True
        criteria = self.trainable["criteria"]
        assert isinstance(criteria, nn.ModuleDict)
        for criterion in criteria.values():
            criterion.compile(backend=backend)

    def uncompiled(self) -> AbstractContextManager[object]:
        """Compute the losses as they are written, compiled or not, for who walks their graph more than once.

        A compiled backward pass writes over what the forward pass left for it, so that it runs only once. Releases of
        torch before 2.6, which cannot set a stance, do not do that either.
        """
        if not self.compiled or not hasattr(torch.compiler, "set_stance"):
            return nullcontext()
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager

    def enter_stage(self, index: int, *, begins: bool = True) -> None:
        """Make a stage the current one.

        Args:
            index: from 0.
            begins: False when a run is resumed in the middle of the stage, whose layers then are as saved.
        """
        self.stage = index
        used = self.levels_in_use(index)
        for teacher in self.every_teacher:
            if teacher.cache is not None and teacher not in used:
                teacher.cache.store.release()
        if begins and not self.stages[index].fresh:
            for own, former in zip(self.lessons, self.lessons_of(index - 1), strict=True):
                own.criterion.load_state_dict(former.criterion.state_dict())

    def forward(self, images: Tensor, targets: Sequence[Target], keys: Sequence[str | None] = ()) -> dict[str, Tensor]:
        """Give the named losses of one batch; their sum is the loss.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
            targets: ground truth of the first images. Those behind feed the distillation terms only, and are left out
                in a stage without a teacher.
            keys: of each image, for teachers with a cache.

        Returns:
            ``task/<detector's loss>``, ``<term>/<level>`` -> scalar; with several teachers in the stage
            ``T<number>.<term>/<level>``, numbered from 1 in the stage's order.
        """
        lessons = self.lessons
        if not lessons:
            images = images[: len(targets)]
        taught = self._teacher_pyramids(images, keys)  # before the student: their peak of memory is over by then
        (pyramid, labeled, task_losses), heads = self._student_step(images, targets, lessons, taught)
        boxes = [target["boxes"] for target in targets] + [images.new_empty(0, 4)] * (len(images) - len(targets))
        named = {f"task/{name}": value for name, value in task_losses.items()}
        for lesson, levels in zip(lessons, heads, strict=True):
            with self.uncompiled() if lesson.measuring else nullcontext():
                terms = lesson.criterion(
                    pyramid,
                    taught[lesson.teacher],
                    boxes=boxes,
                    size=(images.shape[-2], images.shape[-1]),
                    stage=self.stage + 1,
                    heads=levels,
                )
            if lesson.balance is not None:
                terms = lesson.balance(terms, sum(task_losses.values()), pyramid, labeled)
            named |= lesson.named(terms)
        return named

    def levels_in_use(self, index: int) -> dict[FrozenTeacher, set[LevelSpec]]:
        """Tell which levels of which teachers a stage looks at.

        Args:
            index: of the stage, from 0.
        """
        used: dict[FrozenTeacher, set[LevelSpec]] = {}
        for lesson in self.lessons_of(index):
            used.setdefault(lesson.teacher, set()).update(pair.teacher for pair in lesson.criterion.pairs)
        return used

    def diagnostics(self) -> dict[str, Tensor]:
        """``pearson/<level>`` of the last batch, ``T<number>.pearson/<level>`` with several teachers; or nothing."""
        return {
            name: value for lesson in self.lessons for name, value in lesson.named(lesson.criterion.diagnostics).items()
        }

    def student_pass(self, images: Tensor, targets: Sequence[Target]) -> StudentPass:
        """Let the student see all images and learn from the targets of those that have them, which come first."""
        if len(images) == len(targets):
            pyramid, named = self.student(images, targets)
            return StudentPass(pyramid, pyramid, named)
        with_targets, others = images.tensor_split([len(targets)])
        labeled, named = self.student(with_targets, targets)
        rest = self.student.features(others)
        return StudentPass({name: torch.cat([level, rest[name]]) for name, level in labeled.items()}, labeled, named)

    def _teacher_pyramids(self, images: Tensor, keys: Sequence[str | None]) -> dict[FrozenTeacher, FeaturePyramid]:
        """Each teacher's levels that the losses look at; the others need not stay in memory."""
        pyramids = {}
        for teacher, levels in self.levels_in_use(self.stage).items():
            pyramid = teacher.features(images, keys)
            pyramids[teacher] = {level.name: pyramid[level.name] for level in levels}
        return pyramids

    def _student_step(
        self,
        images: Tensor,
        targets: Sequence[Target],
        lessons: Sequence[Lesson],
        taught: Mapping[FrozenTeacher, FeaturePyramid],
    ) -> tuple[StudentPass, Sequence[dict[str, losses.HeadLevel] | None]]:
        """One forward pass of the student, and with it the two heads of each lesson that compares predictions."""
        pairs = [lesson.heads for lesson in lessons if lesson.heads is not None]
        if not pairs:
            return self.student_pass(images, targets), [None] * len(lessons)
        theirs = [pair.teach(taught[pair.teacher]) for pair in pairs]
        pyramid, named, own = self.student.forward_with_head(images, targets, pairs[0].reused)
        compared = [pair.compare(own, levels) for pair, levels in zip(pairs, theirs, strict=True)]
        return StudentPass(pyramid, pyramid, named), compared

    def _pair_heads(
        self, key: str, student: Detector, teacher: FrozenTeacher, criterion: losses.Criterion | losses.CriterionSum
    ) -> None:
        methods = [method for method in criterion.methods if isinstance(method, losses.HeadMethod)]
        if methods:
            self.heads[key] = HeadPair(student, teacher, methods)

    def _check_stage(self, index: int) -> None:
        """Refuse what each teacher alone could do, but not beside the others, or not after those before."""
        lessons, former = self.lessons_of(index), self.lessons_of(index - 1) if index else ()
        cuts = {lesson.heads.reused for lesson in lessons if lesson.heads is not None}
        if len(cuts) > 1:
            raise DfmsdError(
                f"stage {index + 1}: the teachers' heads are unequally deep, so the loss would cut the student's in "
                f"several places; set loss.reused to {min(cuts)}"
            )
        if not self.stages[index].fresh and _shapes(lessons) != _shapes(former):
            raise DfmsdError(
                f"stages.{index}.fresh: the layers of stage {index} and {index + 1} differ in shape or number, "
                "so nothing can be taken over; set fresh: true"
            )


def layers_name(index: int, number: int) -> str:
    """Name a teacher's layers: ``0`` in the first stage, those of its further teachers ``0_T2``, ``0_T3``, ...

    Args:
        index: of the stage, from 0.
        number: of the teacher in the stage, from 0.
    """
    return f"{index}_T{number + 1}" if number else str(index)


def _shapes(lessons: Sequence[Lesson]) -> list[dict[str, Size]]:
    return [{name: value.shape for name, value in lesson.criterion.state_dict().items()} for lesson in lessons]
