"""CrossKD at one pyramid level: the student's head features, read by the teacher's head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.losses.functional import channel_statistics, full_precision, standardize
from dfmsd.losses.method import HeadLevel, HeadMethod, refuse_negative
from dfmsd.utils.boxes import EPS, elementwise_iou
from dfmsd.utils.distributed import mean_count


class Published(NamedTuple):
    """What the official configs have for a family of heads with towers of 4 convolutions."""

    classification: float
    regression: float
    generalized: bool
    reused: int


PUBLISHED = {"fcos": Published(0.4, 0.75, False, 2), "retinanet": Published(1.0, 1.0, True, 1)}
"""``arch`` -> settings."""


@dataclass(frozen=True)
class CrossKDOptions:
    """Switches of CrossKD.

    Args:
        reused: how many of the last convolutions of the teacher's towers read the student's feature; null takes the
            published 2 of 4 for FCOS and 1 of 4 for RetinaNet, or what a shorter tower leaves behind its first.
        classification: factor on the published weight of the term ``cross_cls``; 0 drops it.
        regression: factor on the published weight of the term ``cross_reg``; 0 drops it.
        beta: exponent of the focus on what differs, >= 1.
        eps: of the rescaling; the official code has 1e-6, which lets dead channels explode.
    """

    reused: int | None = None
    classification: float = 1.0
    regression: float = 1.0
    beta: float = 1.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            DfmsdError: a negative factor or number, both terms dropped, ``beta`` below 1, or ``eps`` not above 0.
        """
        refuse_negative({"classification": self.classification, "regression": self.regression})
        if self.classification == self.regression == 0:
            raise DfmsdError("loss.classification and loss.regression are both 0: nothing to distil; keep one of them")
        if self.reused is not None and (type(self.reused) is not int or self.reused < 0):
            raise DfmsdError(f"loss.reused: {self.reused} is no number of convolutions; give 0 or more")
        if self.beta < 1:
            raise DfmsdError(f"loss.beta: {self.beta} is below 1; the published one is 1")
        if self.eps <= 0:
            raise DfmsdError(f"loss.eps: {self.eps} is not above 0; give a small number such as 1e-3")


class CrossKD(HeadMethod):
    r"""Let the teacher's head predict from the student's head features, and imitate what it predicts from its own.

    The student's tower feature is put on the teacher's mean and deviation, channel by channel over batch and
    positions, and goes through the rest of the frozen teacher's head. With its logits $x$ and boxes $b$, and the
    teacher's logits $t$ and boxes $b_T$:

    $L_{cls} = \frac{w_c}{P} \sum BCE(x, \sigma(t)) \cdot |\sigma(x) - \sigma(t)|^\beta$ and
    $L_{reg} = \frac{w_r}{P} \sum \max_k \sigma(t_k) \cdot d(b, b_T)$

    with $d = 1 - GIoU$, $w_c = w_r = 1$ and $P$ the number of positive anchors for RetinaNet, $d = -\log IoU$,
    $w_c = 0.4$, $w_r = 0.75$ and $P$ the sum of the positives' centerness for FCOS. $P$ is at least 1. Anchors that
    are neither object nor background are left out.

    Args:
        channels: of the aligned pair.
        options: see `CrossKDOptions`.

    Source: CrossKD (arXiv 2306.11369, jbwang1997/CrossKD). Differs from the official code in ``eps``; in the lower end
    of $P$, 1e-6 for FCOS there, where a batch without objects explodes; and in the teacher's FCOS boxes without area,
    which torchvision's coding allows: they weigh nothing.
    """

    Options = CrossKDOptions
    name = "crosskd"
    purpose = "sends head features of the student through the teacher's head"
    archs = tuple(PUBLISHED)
    alike = ("arch", "classes", "strides", "anchors", "channels")

    def __init__(self, channels: int, options: CrossKDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        weights = {"cross_cls": options.classification, "cross_reg": options.regression}
        self.terms = tuple(name for name, weight in weights.items() if weight > 0)

    def reused(self, arch: str, convs: int) -> int:
        """Tell how many of a tower's last convolutions are the teacher's.

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
                f"loss.reused: {self.options.reused} of {convs} convolutions leave the student none; "
                f"give at most {convs - 1}, or raise student.head_convs"
            )
        return self.options.reused

    def compare(self, head: HeadLevel) -> dict[str, Tensor]:
        """Give the terms ``cross_cls`` and ``cross_reg``, at least 0."""
        pairs = zip(head.student.towers, head.teacher.towers, strict=True)
        cross = (
            put_on_statistics(full_precision(own), full_precision(theirs), self.options.eps) for own, theirs in pairs
        )
        logits, box_deltas = head.predict(*cross)
        return self._terms(logits, box_deltas, head)

    def _terms(self, logits: Tensor, box_deltas: Tensor, head: HeadLevel) -> dict[str, Tensor]:
        o, published = self.options, PUBLISHED[head.arch]
        positives = mean_count(head.positives)
        target = full_precision(head.teacher.logits)
        terms = {}
        if o.classification > 0:
            error = focal_imitation(logits, target, head.valid, o.beta)
            terms["cross_cls"] = o.classification * published.classification * error / positives
        if o.regression > 0:
            weight = target.amax(dim=2).sigmoid() * head.valid
            boxes, wanted = (head.decode(full_precision(value)) for value in (box_deltas, head.teacher.box_deltas))
            error = box_imitation(boxes, wanted, weight, generalized=published.generalized)
            terms["cross_reg"] = o.regression * published.regression * error / positives
        return terms


def put_on_statistics(student: Tensor, teacher: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Give $z(S) \cdot \mathrm{std}_T + \mathrm{mean}_T$, per channel over batch and positions.

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``; never gets a gradient.
        eps: of the student's standardisation.
    """
    mean, deviation = channel_statistics(teacher.detach(), eps=0.0)
    return torch.addcmul(mean, standardize(student, eps), deviation)


def focal_imitation(logits: Tensor, teacher: Tensor, valid: Tensor, beta: float = 1.0) -> Tensor:
    r"""Sum of $BCE(x, \sigma(t)) \cdot |\sigma(x) - \sigma(t)|^\beta$; 0 where both agree.

    The gradient is written out, so that one map is kept for the backward pass instead of five.

    Args:
        logits: $x$, ``N x A x K``.
        teacher: $t$, ``N x A x K``; never gets a gradient.
        valid: bool, ``N x A``: which rows count.
        beta: >= 1.
    """
    error: Tensor = _FocalImitation.apply(logits, teacher, valid, beta)
    return error


class _FocalImitation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, valid: Tensor, beta: float) -> Tensor:
        target, own = teacher.sigmoid(), logits.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mul_(valid.unsqueeze(2))
        difference = own - target
        distance = difference.abs()
        focus = distance if beta == 1 else distance.pow(beta)
        # d BCE / dx = difference, d focus / dx = beta |difference|^(beta - 1) sign(difference) own (1 - own)
        bend = difference.sign() if beta == 1 else beta * distance.pow(beta - 1) * difference.sign()
        slope = (own * (1 - own)).mul_(bend).mul_(entropy)
        ctx.save_for_backward(slope.add_(difference.mul_(focus).mul_(valid.unsqueeze(2))))
        return entropy.mul_(focus).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient, None, None, None


def box_imitation(boxes: Tensor, teacher: Tensor, weight: Tensor, *, generalized: bool) -> Tensor:
    r"""Weighted sum of $1 - GIoU$ (``generalized``) or $-\log IoU$ of boxes and the teacher's.

    Args:
        boxes: ``... x 4``, xyxy.
        teacher: ``... x 4``, xyxy; never gets a gradient. A box without area counts nothing.
        weight: ``...``.
        generalized: which of the two.
    """
    wanted = teacher.detach()
    overlap = elementwise_iou(boxes, wanted)
    error = 1 - overlap.giou if generalized else -overlap.iou.clamp(min=EPS).log()
    width, height = (wanted[..., 2:] - wanted[..., :2]).unbind(-1)
    return (error * (weight * (width * height > 0))).sum()
