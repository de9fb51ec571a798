"""Student and teacher as two heads of one kind, for losses that compare predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from dfmsd.detectors.base import DenseHead, Detector, HeadPass, HeadSpec, Towers
from dfmsd.distill.teacher import FrozenTeacher, TaughtLevel
from dfmsd.errors import DfmsdError
from dfmsd.losses import CrossKD, HeadLevel
from dfmsd.types import FeaturePyramid, Target


class HeadPair:
    """Run the heads of a student and a teacher so that they can be compared, each once a step.

    Args:
        student: trained.
        teacher: frozen.
        method: tells where the towers are cut.

    Attributes:
        reused: convolutions behind the cut, in both towers.

    Raises:
        DfmsdError: one of the two has no head that can be cut, or the heads are not of one kind.
    """

    def __init__(self, student: Detector, teacher: FrozenTeacher, method: CrossKD) -> None:
        own, theirs = _head(student, "the student"), _head(teacher.detector, "the teacher")
        _check(own.spec, theirs.spec)
        self.student = student
        self.teacher = teacher
        self.head = theirs
        self.arch = own.spec.arch
        self.reused = method.reused(self.arch, min(own.spec.convs, theirs.spec.convs))
        self.names = {s.name: t.name for s, t in zip(student.levels, teacher.levels, strict=True)}

    def teach(self, pyramid: FeaturePyramid) -> dict[str, TaughtLevel]:
        """Run the teacher's head on its pyramid, computed or cached; by level of the student."""
        levels = {own: pyramid[theirs] for own, theirs in self.names.items()}
        return self.teacher.read(self.head, levels, self.reused)

    def learn(
        self, images: Tensor, targets: Sequence[Target], taught: Mapping[str, TaughtLevel]
    ) -> tuple[FeaturePyramid, dict[str, Tensor], dict[str, HeadLevel]]:
        """Run the student: pyramid and losses of its one forward pass, and the two heads at each level."""
        pyramid, losses, own = self.student.forward_with_head(images, targets, self.reused)
        return pyramid, losses, {name: self._level(name, own, level) for name, level in taught.items()}

    def _level(self, name: str, own: HeadPass, taught: TaughtLevel) -> HeadLevel:
        anchors = own.anchors[name]
        return HeadLevel(
            self.arch,
            own.towers[name],
            taught.towers,
            taught.logits,
            self.head.decode(taught.codes.float(), anchors),
            partial(_predict, self.head, anchors, self.reused),
            own.valid[name],
            own.positives,
        )


def _predict(
    head: DenseHead, anchors: Tensor, reused: int, classification: Tensor, regression: Tensor
) -> tuple[Tensor, Tensor]:
    logits, codes = head.predict(Towers(classification, regression), reused)
    return logits, head.decode(codes, anchors)


def _head(detector: Detector, who: str) -> DenseHead:
    head = detector.dense_head
    if head is None:
        raise DfmsdError(
            f"crosskd sends head features of the student through the teacher's head, and {who} has no dense head that "
            "can be cut; take FCOS or RetinaNet for both, or a loss on features such as pkd"
        )
    return head


def _check(student: HeadSpec, teacher: HeadSpec) -> None:
    """Refuse heads whose features mean different things."""
    remedies = {
        "arch": "set student.arch to the teacher's",
        "classes": "train the teacher on this data",
        "strides": "choose detectors with the same levels",
        "anchors": "set student.anchor_scale to the teacher's",
        "channels": "set student.fpn_channels to the teacher's",
    }
    for field, remedy in remedies.items():
        own, theirs = getattr(student, field), getattr(teacher, field)
        if own != theirs:
            raise DfmsdError(
                f"crosskd needs two heads of one kind, and {field} differ: {own} of the student, {theirs} of the "
                f"teacher; {remedy}, or choose a loss on features such as pkd"
            )
