"""Student and teacher as two dense heads, for losses that compare predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from dfmsd.detectors.base import DenseHead, Detector, HeadPass, HeadSpec, Towers
from dfmsd.distillation.teacher import FrozenTeacher, TaughtLevel
from dfmsd.errors import DfmsdError
from dfmsd.losses import HeadLevel, HeadMethod, HeadSide
from dfmsd.types import FeaturePyramid

_REMEDIES = {
    "arch": "set student.arch to the teacher's",
    "classes": "train the teacher on this data",
    "strides": "choose detectors with the same levels",
    "anchors": "set student.anchor_scale to the teacher's",
    "channels": "set student.fpn_channels to the teacher's",
    "bins": "choose heads whose distributions have the same bins",
}


class HeadPair:
    """Run the heads of a student and a teacher so that they can be compared, each once a step.

    Args:
        student: trained.
        teacher: frozen.
        methods: tell what heads they compare, and where the towers are cut.

    Attributes:
        teacher: frozen.
        reused: convolutions behind the cut, in both towers.

    Raises:
        DfmsdError: one of the two has no head that a method can compare, or the heads are not alike.
    """

    def __init__(self, student: Detector, teacher: FrozenTeacher, methods: Sequence[HeadMethod]) -> None:
        for method in methods:
            own, theirs = _head(student, "the student", method), _head(teacher.detector, "the teacher", method)
            _check(own.spec, theirs.spec, method)
        self.teacher = teacher
        self.head = theirs
        self.arch = own.spec.arch
        convs = min(own.spec.convs, theirs.spec.convs)
        cuts = (method.reused(self.arch, convs) for method in methods)
        self.reused = next((reused for reused in cuts if reused is not None), 0)
        self.names = {s.name: t.name for s, t in zip(student.levels, teacher.levels, strict=True)}

    def teach(self, pyramid: FeaturePyramid) -> dict[str, TaughtLevel]:
        """Run the teacher's head on its pyramid, computed or cached; by level of the student."""
        taught: dict[str, TaughtLevel] = {}
        for index, (own, theirs) in enumerate(self.names.items()):
            taught |= self.teacher.read(self.head.at(index), {own: pyramid[theirs]}, self.reused)
        return taught

    def compare(self, own: HeadPass, taught: Mapping[str, TaughtLevel]) -> dict[str, HeadLevel]:
        """Put the two heads side by side, by level of the student.

        Args:
            own: of the student's one forward pass, whose towers are cut where ``reused`` convolutions are left.
            taught: see `teach`.
        """
        return {name: self._level(index, name, own, taught[name]) for index, name in enumerate(self.names)}

    def _level(self, index: int, name: str, own: HeadPass, taught: TaughtLevel) -> HeadLevel:
        head = self.head.at(index)
        return HeadLevel(
            self.arch,
            HeadSide(own.towers[name], own.logits[name], own.box_deltas[name]),
            HeadSide(*taught),
            partial(_predict, head, self.reused),
            partial(head.decode, anchors=own.anchors[name]),
            own.valid[name],
            own.objects[name],
            own.near[name],
            own.positives,
        )


def _predict(head: DenseHead, reused: int, classification: Tensor, regression: Tensor) -> tuple[Tensor, Tensor]:
    return head.predict(Towers(classification, regression), reused)


def _head(detector: Detector, who: str, method: HeadMethod) -> DenseHead:
    head = detector.dense_head
    if head is None or head.spec.arch not in method.archs:
        has = "no dense head that can be cut" if head is None else f"a head of {head.spec.arch}"
        raise DfmsdError(
            f"{method.name} {method.purpose}, and {who} has {has}; take {' or '.join(method.archs)} for both, or a "
            "loss on features such as pkd"
        )
    return head


def _check(student: HeadSpec, teacher: HeadSpec, method: HeadMethod) -> None:
    """Refuse heads that mean different things."""
    for field in method.alike:
        own, theirs = getattr(student, field), getattr(teacher, field)
        if own != theirs:
            raise DfmsdError(
                f"{method.name} needs two heads of one kind, and {field} differ: {own} of the student, {theirs} of the "
                f"teacher; {_REMEDIES[field]}, or choose a loss on features such as pkd"
            )
