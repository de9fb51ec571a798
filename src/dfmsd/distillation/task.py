"""Distillation training step: a student under its teachers, as named losses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain

from torch import Tensor, nn

from dfmsd import losses
from dfmsd.detectors.base import Detector
from dfmsd.distillation.compiled import Backend, CompiledParts
from dfmsd.distillation.fitting import fit_bases, unfitted
from dfmsd.distillation.lesson import Lesson, build_lessons
from dfmsd.distillation.passes import StudentPass, run_student
from dfmsd.distillation.reuse import check_reuse, reuse_layers, reuses_layers
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.losses.basis import Correlation
from dfmsd.types import Batch, LevelSpec, Target
from dfmsd.utils.shapes import frame_of


class DistillationTask(nn.Module):
    """A student, the training-only layers of every stage, and the teachers, which stay outside the module tree.

    All stages' layers exist from the start, so that one optimizer, one checkpoint layout and one DDP wrapper serve the
    whole run.

    Args:
        student: trained in place.
        stages: the plan.
        teachers: the teachers of each stage: none, one, or several whose losses are added up.
        loss: ``name`` and options of the loss, or a list of such; for the loss of a stage see `losses.replace_loss`.
        balance: target norm of a teacher's gradient relative to that of the task loss, see `GradientBalance`; None
            keeps the weights of the config, as do stages without labels, which have no task loss.

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
        self._lessons = build_lessons(student, self.stages, self.teachers, loss, balance)
        check_reuse(self.stages, self._lessons)
        every = tuple(chain.from_iterable(self._lessons))
        criteria = nn.ModuleDict({lesson.key: lesson.criterion for lesson in every})
        balances = nn.ModuleDict({lesson.key: lesson.balance for lesson in every if lesson.balance is not None})
        self.trainable = nn.ModuleDict({"student": student, "criteria": criteria, "balance": balances})

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

    @property
    def unfitted(self) -> tuple[Lesson, ...]:
        """The lessons of the current stage whose basis is not fitted yet."""
        return unfitted(self.lessons)

    def lessons_of(self, index: int) -> tuple[Lesson, ...]:
        """Return the teachers of a stage with their losses.

        Args:
            index: stage, from 0.
        """
        return self._lessons[index]

    def levels_in_use(self, index: int) -> dict[FrozenTeacher, set[LevelSpec]]:
        """Return each teacher's own levels that the losses of a stage use.

        Args:
            index: stage, from 0.
        """
        used: dict[FrozenTeacher, set[LevelSpec]] = {}
        for lesson in self.lessons_of(index):
            used.setdefault(lesson.teacher, set()).update(lesson.levels)
        return used

    def targets_in_use(self, targets: Sequence[Target]) -> Sequence[Target]:
        """Return the targets that the current stage uses: none in a stage without labels."""
        return targets if self.labels else ()

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
        if begins and reuses_layers(self.stages, self._lessons, index):
            reuse_layers(self.lessons_of(index - 1), self.lessons)

    def share_balance(self, share: float) -> None:
        """Set the share of the target ratio that the teachers of the current stage have left, see `balance_share`."""
        for lesson in self.lessons:
            if lesson.balance is not None:
                lesson.balance.share = share

    def fit_bases(self, batches: Sequence[Batch]) -> dict[str, dict[str, Correlation]]:
        """Fit the bases of the current stage.

        Args:
            batches: images on the device of the student and the teachers.

        Returns:
            Label of the teacher -> its level -> correlation with the reference's channels of the same index, before and
            after.
        """
        former = next(iter(self.lessons_of(self.stage - 1)), None) if self.stage else None
        return fit_bases(self.lessons, former, self.student, batches)

    def compile_parts(self, backend: Backend = "inductor") -> list[str]:
        """Run student, teachers and losses through ``torch.compile`` in every later call of the task.

        Each part is compiled on its first call, and again for other shapes; see `CompiledParts`. In steps in which a
        balance measures gradients, only the teachers run compiled.

        Args:
            backend: of ``torch.compile``.

        Returns:
            The detectors that stay as they are, since it is not known which of their layers can be compiled.
        """
        student = self.student.compilable()
        teachers = {teacher.name: teacher.detector.compilable() for teacher in self.every_teacher}
        criteria = [lesson.criterion for lesson in chain.from_iterable(self._lessons)]
        self.compiled = CompiledParts(chain.from_iterable(teachers.values()), chain(student, criteria), backend)
        plain = [f"teacher {name}" for name, layers in teachers.items() if not layers]
        return plain if student else ["the student", *plain]

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
        measuring = any(lesson.measuring for lesson in self.lessons)
        with self.compiled.active(measuring=measuring) if self.compiled else nullcontext():
            return self._compute(images, self.targets_in_use(targets), keys, images if larger is None else larger)

    def _compute(
        self, images: Tensor, targets: Sequence[Target], keys: Sequence[str | None], for_teachers: Tensor
    ) -> dict[str, Tensor]:
        lessons = self.lessons
        # first, so that the teachers' peak memory is over before the student's
        of_teachers = [lesson.run_teacher(for_teachers, keys) for lesson in lessons]
        of_student = self.run_student(images if lessons else images[: len(targets)], targets)
        named = {f"task/{name}": value for name, value in of_student.losses.items()}
        boxes = [target["boxes"] for target in targets] + [images.new_empty(0, 4)] * (len(images) - len(targets))
        for lesson, of_teacher in zip(lessons, of_teachers, strict=True):
            if self.warming_up and lesson.criterion.basis is not None:
                continue
            named |= lesson.terms(of_student, of_teacher, boxes=boxes, size=frame_of(images), stage=self.stage + 1)
        return named

    def run_student(self, images: Tensor, targets: Sequence[Target]) -> StudentPass:
        """Run the student once, as far as the losses of the current stage need it.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
            targets: of the first images.
        """
        reused = next((lesson.heads.reused for lesson in self.lessons if lesson.heads is not None), None)
        queries = any(lesson.compares_queries for lesson in self.lessons)
        return run_student(self.student, images, targets, reused=reused, queries=queries)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the `Lesson.diagnostics` of the current stage, such as ``pearson/p3``."""
        return {name: value for lesson in self.lessons for name, value in lesson.diagnostics.items()}
