"""CrossKD at one pyramid level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.functional import full_precision
from dfmsd.losses.method import HeadLevel, HeadMethod, refuse_negative
from dfmsd.utils.distributed import mean_count


class Published(NamedTuple):
    """Settings of the official configs for heads whose towers have 4 convolutions."""

    classification: float
    regression: float
    generalized: bool
    reused: int


PUBLISHED = {"fcos": Published(0.4, 0.75, False, 2), "retinanet": Published(1.0, 1.0, True, 1)}
"""``arch`` -> settings."""


@dataclass(frozen=True)
class CrossKDOptions:
    """Options of CrossKD.

    Args:
        reused: how many of the last convolutions of the teacher's towers process the student's features. None takes the
            published 2 of 4 for FCOS and 1 of 4 for RetinaNet, or in a shorter tower all but the first.
        classification: factor on the published weight of the term ``cross_cls``; 0 drops it.
        regression: factor on the published weight of the term ``cross_reg``; 0 drops it.
        beta: focusing exponent of the class scores' differences, >= 1.
        eps: added to the student's standard deviation; 1e-6 in the official code, which lets the gradient of a constant
            channel explode.
    """

    reused: int | None = None
    classification: float = 1.0
    regression: float = 1.0
    beta: float = 1.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: a negative factor or number, both terms dropped, ``beta`` below 1, or ``eps`` not above 0.
        """
        refuse_negative({"classification": self.classification, "regression": self.regression})
        if self.classification == self.regression == 0:
            raise DfmsdError(
                "loss.classification and loss.regression are both 0, so nothing is distilled; set one above 0"
            )
        if self.reused is not None and self.reused < 0:
            raise DfmsdError(f"loss.reused must be at least 0, got {self.reused}")
        if self.beta < 1:
            raise DfmsdError(f"loss.beta must be at least 1, got {self.beta}; the published value is 1")
        if self.eps <= 0:
            raise DfmsdError(f"loss.eps must be above 0, got {self.eps}; try 1e-3")


class CrossKD(HeadMethod):
    r"""Pass the student's head features through the teacher's head, and imitate the teacher's own predictions.

    The student's tower features are rescaled to the teacher's mean and standard deviation, channel by channel over
    batch and positions, and pass through the rest of the frozen teacher's head. This yields the logits $x$ and boxes
    $b$; the teacher's are $t$ and $b_T$:

    $L_{cls} = \frac{w_c}{P} \sum BCE(x, \sigma(t)) \cdot |\sigma(x) - \sigma(t)|^\beta$ and
    $L_{reg} = \frac{w_r}{P} \sum \max_k \sigma(t_k) \cdot d(b, b_T)$

    with $d = 1 - GIoU$, $w_c = w_r = 1$ and $P$ the number of positive anchors for RetinaNet, $d = -\log IoU$,
    $w_c = 0.4$, $w_r = 0.75$ and $P$ the total centerness of the positives for FCOS. $P$ is at least 1. Anchors that
    are neither object nor background are left out.

    Args:
        channels: of the aligned pair; not used.
        options: see `CrossKDOptions`.

    Source: CrossKD (arXiv 2306.11369, jbwang1997/CrossKD). Differs from the official code in ``eps``; in the lower
    limit of $P$, 1e-6 for FCOS there, where the loss explodes in a batch without objects; and in the teacher's FCOS
    boxes without area, which torchvision's coding allows: they have no weight here.
    """

    name = "crosskd"
    Options = CrossKDOptions
    purpose = "passes head features of the student through the teacher's head"
    archs = tuple(PUBLISHED)
    alike = ("arch", "classes", "strides", "anchors", "channels")

    def __init__(self, channels: int, options: CrossKDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        weights = {"cross_cls": options.classification, "cross_reg": options.regression}
        self.terms = tuple(name for name, weight in weights.items() if weight > 0)

    def reused(self, arch: str, convs: int) -> int:
        """Return how many of a tower's last convolutions are the teacher's.

        Args:
            arch: of both heads.
            convs: of the shorter tower.

        Raises:
            DfmsdError: ``reused`` leaves no convolution to the student.
        """
        if self.options.reused is None:
            return min(PUBLISHED[arch].reused, convs - 1)
        if self.options.reused >= convs:
            raise DfmsdError(
                f"loss.reused must be below the {convs} convolutions of the towers, got {self.options.reused}; set at "
                f"most {convs - 1}, or raise student.head_convs"
            )
        return self.options.reused

    def compare(self, head: HeadLevel) -> dict[str, Tensor]:
        """Compute the terms ``cross_cls`` and ``cross_reg``, each at least 0."""
        towers = zip(head.student.towers, head.teacher.towers, strict=True)
        rescaled = (
            functional.match_statistics(full_precision(student), full_precision(teacher), self.options.eps)
            for student, teacher in towers
        )
        logits, box_deltas = head.predict(*rescaled)
        return self._terms(logits, box_deltas, head)

    def _terms(self, logits: Tensor, box_deltas: Tensor, head: HeadLevel) -> dict[str, Tensor]:
        o, published = self.options, PUBLISHED[head.arch]
        positives = mean_count(head.positives)
        target = full_precision(head.teacher.logits)
        terms = {}
        if o.classification > 0:
            error = functional.crosskd_cls(logits, target, head.valid, o.beta)
            terms["cross_cls"] = o.classification * published.classification * error / positives
        if o.regression > 0:
            weight = target.amax(dim=2).sigmoid() * head.valid
            boxes, teacher = (head.decode(full_precision(value)) for value in (box_deltas, head.teacher.box_deltas))
            error = functional.crosskd_reg(boxes, teacher, weight, generalized=published.generalized)
            terms["cross_reg"] = o.regression * published.regression * error / positives
        return terms
