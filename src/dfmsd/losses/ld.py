"""LD at one pyramid level: where the teacher sees the sides of a box, and how sure it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.losses.functional import full_precision
from dfmsd.losses.method import HeadLevel, HeadMethod, refuse_negative
from dfmsd.utils.distributed import mean_count

MAIN_WEIGHT = 0.25
VALUABLE_WEIGHT = 0.25
CLASS_WEIGHT = 10.0
VALUABLE_DIVISOR = 4
"""Of the valuable region's sum over sides, beyond their number: the official code divides by 16."""
PUBLISHED_BATCH = 2
"""Images of a process in the official configs, whose code sums over the batch."""
SIDES = 4


@dataclass(frozen=True)
class LDOptions:
    """Switches of LD.

    Args:
        main: factor on the published weight of the term ``ld_main``; 0 drops it.
        valuable: factor on the published weight of the term ``ld_valuable``; 0 drops it.
        classes: factor on the published weight of the term ``ld_cls``; 0 drops it.
        temperature: of the sides' distributions.
        class_temperature: of the class scores.
    """

    main: float = 1.0
    valuable: float = 1.0
    classes: float = 1.0
    temperature: float = 10.0
    class_temperature: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            DfmsdError: a negative factor, all terms dropped, or a temperature not above 0.
        """
        refuse_negative(asdict(self))
        if self.main == self.valuable == self.classes == 0:
            raise DfmsdError("loss.main, loss.valuable and loss.classes are all 0: nothing to distil; keep one of them")
        for name, published in (("temperature", 10), ("class_temperature", 2)):
            if getattr(self, name) == 0:
                raise DfmsdError(f"loss.{name}: 0 is no temperature; the published one is {published}")


class LD(HeadMethod):
    r"""Imitate the distributions of a box's sides where objects are and nearly are, and the class scores of objects.

    With $D(s, t) = \tau^2 \mathrm{mean}_b\, p_b(t) \log (p_b(t) / p_b(s))$, $p(x) = \mathrm{softmax}(x / \tau)$, the
    logits $s, t$ of a side over the bins $b$ and the class logits $x, y$ of student and teacher:

    $L_{main} = \frac{w}{N} \sum_{objects} \max_k \sigma(x_k) \cdot \mathrm{mean}_{sides} D(s, t)$,
    $L_{valuable} = \frac{w}{4 N} \sum_{near} IoU \cdot \mathrm{mean}_{sides} D(s, t)$ and
    $L_{cls} = 10\, \mathrm{mean}_{objects} D(x, y)$ over the classes

    with $w = 2 \cdot 0.25$, $\tau = 10$ for sides and 2 for classes. Objects are the anchors that learn one, near are
    those of the valuable region, see `dfmsd.detectors.torchvision.gfl_loss.valuable_region`. The weights have no
    gradient.

    Args:
        channels: of the aligned pair; not used.
        options: see `LDOptions`.

    Source: LD (arXiv 2102.12252, HikariTJU/LD, ``LDHead`` with main LD, valuable LD and main KD; its feature imitation
    is left out, add ``fitnet`` or ``pkd`` for that). Differs from the official code in the mean over the images, times
    the 2 of a process there: a sum over the batch makes the loss grow with it, which the authors warn of.
    """

    Options = LDOptions
    name = "ld"
    purpose = "compares distributions of the sides of boxes"
    archs = ("gfl",)
    alike = ("classes", "strides", "bins")

    def __init__(self, channels: int, options: LDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        factors = {"ld_main": options.main, "ld_valuable": options.valuable, "ld_cls": options.classes}
        self.terms = tuple(name for name, factor in factors.items() if factor > 0)

    def compare(self, head: HeadLevel) -> dict[str, Tensor]:
        """Give the terms ``ld_main``, ``ld_valuable`` and ``ld_cls``, at least 0."""
        objects = head.objects.to(full_precision(head.student.logits).dtype)
        o, terms = self.options, {}
        if o.main > 0:
            weight = objects * full_precision(head.student.logits.detach()).sigmoid().amax(dim=2)
            terms["ld_main"] = o.main * MAIN_WEIGHT * self._sides(head, weight)
        if o.valuable > 0:
            terms["ld_valuable"] = o.valuable * VALUABLE_WEIGHT / VALUABLE_DIVISOR * self._sides(head, head.near)
        if o.classes > 0:
            own, theirs = (full_precision(side.logits) for side in (head.student, head.teacher))
            error = divergence(own, theirs, objects, o.class_temperature)
            terms["ld_cls"] = o.classes * CLASS_WEIGHT * error / mean_count(objects.sum())
        return terms

    def _sides(self, head: HeadLevel, weight: Tensor) -> Tensor:
        """Sum over anchors of the weighted mean over sides, of an image, times the images of the official code."""
        own, theirs = (
            torch.unflatten(full_precision(side.box_deltas), 2, (SIDES, -1)) for side in (head.student, head.teacher)
        )
        weight = weight.unsqueeze(2).expand(-1, -1, SIDES)
        return divergence(own, theirs, weight, self.options.temperature) * (PUBLISHED_BATCH / SIDES / len(weight))


def divergence(student: Tensor, teacher: Tensor, weight: Tensor, temperature: float) -> Tensor:
    r"""Weighted sum of $\tau^2 \mathrm{mean}_b\, p_b(t) \log (p_b(t) / p_b(s))$, $p(x) = \mathrm{softmax}(x / \tau)$.

    The gradient is written out, so that one map is kept for the backward pass instead of four.

    Args:
        student: $s$, ``... x B``.
        teacher: $t$, ``... x B``; never gets a gradient.
        weight: ``...``; never gets a gradient.
        temperature: $\tau$, > 0.
    """
    error: Tensor = _Divergence.apply(student, teacher, weight, temperature)
    return error


class _Divergence(Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, temperature: float) -> Tensor:
        own, theirs = (F.log_softmax(value / temperature, dim=-1) for value in (student, teacher))
        target = theirs.exp()
        error = theirs.sub_(own).mul_(target).sum(dim=-1)
        # d KL / ds = (p(s) - p(t)) / temperature
        scale = temperature / student.shape[-1]
        ctx.save_for_backward(own.exp_().sub_(target).mul_((scale * weight).unsqueeze(-1)))
        return (error * weight).sum() * (temperature * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient, None, None, None
