"""A training step of a student under its teachers, as named losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dfmsd import losses
from dfmsd.detectors.base import Detector
from dfmsd.distill.balance import GradientBalance
from dfmsd.distill.heads import HeadPair
from dfmsd.distill.stages import StageConfig
from dfmsd.distill.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import FeaturePyramid, LevelSpec, Target


class DistillationTask(nn.Module):
    """The student, the training-only layers of every stage, and the teachers, who stay outside the module tree.

    All stages' layers exist from the start, so that one optimiser, one checkpoint layout and one DDP wrapper
    serve the whole run.

    Args:
        student: trained in place.
        stages: the plan.
        teachers: one per stage; None where the stage has none.
        loss: ``name`` and options of the loss, or a list of such; for a stage's own see `losses.replace_loss`.
        balance: size of each term's gradient relative to the task's, see `GradientBalance`; None keeps the
            stated weights.

    Attributes:
        trainable: student, alignment and generation: what the optimiser, DDP and resume see. Holds every
            parameter and buffer of this module.
        stage: index of the current stage, from 0.
    """

    def __init__(
        self,
        student: Detector,
        stages: Sequence[StageConfig],
        teachers: Sequence[FrozenTeacher | None],
        loss: losses.LossConfig,
        balance: float | None = None,
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.teachers = tuple(teachers)
        self.stage = 0
        self.heads: dict[int, HeadPair] = {}
        criteria, balances = nn.ModuleDict(), nn.ModuleDict()
        for index, (stage, teacher) in enumerate(zip(stages, teachers, strict=True)):
            if teacher is None:
                continue
            try:
                criterion = losses.build_sum(losses.replace_loss(loss, stage.loss), student.levels, teacher.levels)
                self._pair_heads(index, student, teacher, criterion)
            except DfmsdError as error:
                raise DfmsdError(f"stage {index + 1}, teacher {teacher.name}: {error}") from error
            criteria[str(index)] = criterion
            if balance is not None:
                balances[str(index)] = GradientBalance(criterion.terms, balance)
        self.trainable = nn.ModuleDict({"student": student, "criteria": criteria, "balance": balances})
        self._check_takeover()

    @property
    def student(self) -> Detector:
        """The detector that is handed over in the end."""
        student = self.trainable["student"]
        assert isinstance(student, Detector)
        return student

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The current stage's teacher."""
        return self.teachers[self.stage]

    @property
    def criterion(self) -> losses.Criterion | losses.CriterionSum | None:
        """The current stage's criterion."""
        criterion: losses.Criterion | losses.CriterionSum | None = self._of_stage("criteria", self.stage)
        return criterion

    @property
    def balance(self) -> GradientBalance | None:
        """The current stage's balance of terms."""
        balance: GradientBalance | None = self._of_stage("balance", self.stage)
        return balance

    def compile_losses(self) -> None:
        """Let ``torch.compile`` make one kernel of many in the losses of every stage, on their first call."""
        criteria = self.trainable["criteria"]
        assert isinstance(criteria, nn.ModuleDict)
        for criterion in criteria.values():
            criterion.compile()

    def enter_stage(self, index: int, *, begins: bool = True) -> None:
        """Make a stage the current one.

        Args:
            index: from 0.
            begins: False when a run is resumed in the middle of the stage, whose layers then are as saved.
        """
        self.stage = index
        for teacher in self.teachers:
            if teacher is not None and teacher.cache is not None and teacher not in self.levels_in_use(index):
                teacher.cache.store.release()
        if begins and self.criterion is not None and not self.stages[index].fresh:
            former = self._of_stage("criteria", index - 1)
            self.criterion.load_state_dict(former.state_dict())

    def forward(self, images: Tensor, targets: Sequence[Target], keys: Sequence[str | None] = ()) -> dict[str, Tensor]:
        """Give the named losses of one batch; their sum is the loss.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
            targets: ground truth of each image.
            keys: of each image, for teachers with a cache.

        Returns:
            ``task/<detector's loss>``, ``<term>/<level>`` -> scalar.
        """
        criterion = self.criterion
        teacher_pyramid = self._teacher_pyramid(images, keys)  # before the student: its peak of memory is over by then
        pyramid, task_losses, heads = self._student_step(images, targets, teacher_pyramid)
        named = {f"task/{name}": value for name, value in task_losses.items()}
        if teacher_pyramid is None or criterion is None:
            return named
        terms = criterion(
            pyramid,
            teacher_pyramid,
            boxes=[target["boxes"] for target in targets],
            size=(images.shape[-2], images.shape[-1]),
            stage=self.stage + 1,
            previous=self._previous_pyramid(images, keys),
            heads=heads,
        )
        if self.balance is not None:
            terms = self.balance(terms, sum(task_losses.values()), pyramid)
        return {**named, **terms}

    def levels_in_use(self, index: int) -> dict[FrozenTeacher, set[LevelSpec]]:
        """Tell which levels of which teachers a stage looks at.

        Args:
            index: of the stage, from 0.
        """
        teacher, criterion = self.teachers[index], self._of_stage("criteria", index)
        if teacher is None:
            return {}
        used = {teacher: {pair.teacher for pair in criterion.pairs}}
        previous = self._previous(index)
        if previous is not None:
            strides = {pair.teacher.stride for pair in criterion.pairs}
            used.setdefault(previous, set()).update(level for level in previous.levels if level.stride in strides)
        return used

    def diagnostics(self) -> dict[str, Tensor]:
        """``pearson/<level>`` of the last batch; empty in a stage without teacher."""
        return {} if self.criterion is None else self.criterion.diagnostics

    def _student_step(
        self, images: Tensor, targets: Sequence[Target], teacher_pyramid: FeaturePyramid | None
    ) -> tuple[FeaturePyramid, dict[str, Tensor], dict[str, losses.HeadLevel] | None]:
        """One forward pass of the student, and with it the two heads, where the loss compares predictions."""
        pair = self.heads.get(self.stage)
        if pair is None or teacher_pyramid is None:
            return *self.student(images, targets), None
        return pair.learn(images, targets, pair.teach(teacher_pyramid))

    def _teacher_pyramid(self, images: Tensor, keys: Sequence[str | None]) -> FeaturePyramid | None:
        """The levels that the criterion pairs; the others need not stay in memory."""
        if self.teacher is None or self.criterion is None:
            return None
        pyramid = self.teacher.features(images, keys)
        return {pair.teacher.name: pyramid[pair.teacher.name] for pair in self.criterion.pairs}

    def _previous_pyramid(self, images: Tensor, keys: Sequence[str | None]) -> FeaturePyramid | None:
        """The previous teacher's pyramid under the current teacher's level names, where the loss asks for it."""
        previous = self._previous(self.stage)
        if previous is None or self.criterion is None:
            return None
        pyramid = previous.features(images, keys)
        names = {level.stride: level.name for level in previous.levels}
        return {
            pair.teacher.name: pyramid[names[pair.teacher.stride]]
            for pair in self.criterion.pairs
            if pair.teacher.stride in names
        }

    def _previous(self, index: int) -> FrozenTeacher | None:
        """The teacher before, where the loss of a stage asks for it."""
        criterion = self._of_stage("criteria", index)
        return self.teachers[index - 1] if index and criterion is not None and criterion.needs_previous else None

    def _of_stage(self, kind: str, index: int) -> Any:
        modules = self.trainable[kind]
        assert isinstance(modules, nn.ModuleDict)
        return dict(modules.items()).get(str(index))

    def _pair_heads(
        self, index: int, student: Detector, teacher: FrozenTeacher, criterion: losses.Criterion | losses.CriterionSum
    ) -> None:
        methods = [method for method in criterion.methods if isinstance(method, losses.HeadMethod)]
        if methods:
            self.heads[index] = HeadPair(student, teacher, methods)

    def _check_takeover(self) -> None:
        for index, stage in enumerate(self.stages):
            if stage.fresh or self.teachers[index] is None:
                continue
            own, former = (self._of_stage("criteria", i).state_dict() for i in (index, index - 1))
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in former.items()}:
                raise DfmsdError(
                    f"stages.{index}.fresh: the layers of stage {index} and {index + 1} differ in shape, "
                    "so nothing can be taken over; set fresh: true"
                )
