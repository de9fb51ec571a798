"""Pairs of student and teacher dense heads, for losses that compare predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from dfmsd.detectors.base import Detector
from dfmsd.detectors.dense import DenseHead, HeadPass, HeadSpec, Towers
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.losses import HeadLevel, HeadMethod, HeadSide
from dfmsd.types import FeaturePyramid

REMEDIES = {
    "arch": "set student.arch to the teacher's",
    "classes": "train the teacher on this data",
    "strides": "choose detectors with the same levels",
    "anchors": "set student.anchor_scale to the teacher's",
    "channels": "set student.fpn_channels to the teacher's",
    "bins": "choose heads whose distributions have the same bins",
}
"""Field of `HeadSpec` -> what makes it equal for both heads."""


class HeadPair:
    """Run the dense heads of a student and a teacher, each once per step, so that methods can compare them.

    Args:
        student: trained.
        teacher: frozen.
        methods: which heads they can compare, and where they cut the towers.

    Attributes:
        teacher: the teacher.
        reused: number of convolutions after the cut, in both towers.

    Raises:
        DfmsdError: a detector has no head that a method can compare, or the heads do not match.
    """

    def __init__(self, student: Detector, teacher: FrozenTeacher, methods: Sequence[HeadMethod]) -> None:
        for method in methods:
            student_head = _find_head(student, "the student", method)
            teacher_head = _find_head(teacher.detector, "the teacher", method)
            _check_match(student_head.spec, teacher_head.spec, method)
        self.teacher = teacher
        self.head = teacher_head
        self.arch = student_head.spec.arch
        convs = min(student_head.spec.convs, teacher_head.spec.convs)
        cuts = (method.reused(self.arch, convs) for method in methods)
        self.reused = next((reused for reused in cuts if reused is not None), 0)
        self.teacher_level = {s.name: t.name for s, t in zip(student.levels, teacher.levels, strict=True)}

    def run_teacher(self, pyramid: FeaturePyramid) -> dict[str, HeadSide]:
        """Run the teacher's head on its pyramid, computed or cached.

        Returns:
            Towers and predictions by the student's level names.
        """
        return {
            level: self.teacher.run_head(self.head.at(index), pyramid[teacher_level], self.reused)
            for index, (level, teacher_level) in enumerate(self.teacher_level.items())
        }

    def pair(self, student: HeadPass, teacher: Mapping[str, HeadSide]) -> dict[str, HeadLevel]:
        """Pair the two heads level by level.

        Args:
            student: from the student's forward pass, with towers cut before the last ``reused`` convolutions.
            teacher: see `run_teacher`.

        Returns:
            Both heads by the student's level names.
        """
        paired = {}
        for index, level in enumerate(self.teacher_level):
            head = self.head.at(index)
            paired[level] = HeadLevel(
                arch=self.arch,
                student=HeadSide(student.towers[level], student.logits[level], student.box_deltas[level]),
                teacher=teacher[level],
                predict=partial(_predict, head, self.reused),
                decode=partial(head.decode, anchors=student.anchors[level]),
                valid=student.valid[level],
                objects=student.objects[level],
                near=student.near[level],
                positives=student.positives,
            )
        return paired


def _predict(head: DenseHead, reused: int, classification: Tensor, regression: Tensor) -> tuple[Tensor, Tensor]:
    return head.predict(Towers(classification, regression), reused)


def _find_head(detector: Detector, who: str, method: HeadMethod) -> DenseHead:
    head = detector.dense_head
    if head is None or head.spec.arch not in method.archs:
        has = "no dense head that can be cut" if head is None else f"a head of {head.spec.arch}"
        raise DfmsdError(
            f"{method.name} {method.purpose}, and {who} has {has}; use {' or '.join(method.archs)} for both, or a "
            "loss on features such as pkd"
        )
    return head


def _check_match(student: HeadSpec, teacher: HeadSpec, method: HeadMethod) -> None:
    for field in method.alike:
        of_student, of_teacher = getattr(student, field), getattr(teacher, field)
        if of_student != of_teacher:
            raise DfmsdError(
                f"{method.name} needs two heads of one kind, but their {field} differ: {of_student} (student), "
                f"{of_teacher} (teacher); {REMEDIES[field]}, or choose a loss on features such as pkd"
            )
