"""LD at one pyramid level."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.functional import full_precision
from dfmsd.losses.method import HeadLevel, HeadMethod, refuse_negative
from dfmsd.utils.distributed import mean_count

MAIN_WEIGHT = 0.25
VALUABLE_WEIGHT = 0.25
CLASS_WEIGHT = 10.0
VALUABLE_DIVISOR = 4
"""Extra divisor in the valuable localization region: the official code divides the sum over sides by 16, not by 4."""
PUBLISHED_BATCH = 2
"""Images per process in the official configs, whose code sums over the batch."""
SIDES = 4


@dataclass(frozen=True)
class LDOptions:
    """Options of LD.

    Args:
        main: factor on the published weight of the term ``ld_main``; 0 drops it.
        valuable: factor on the published weight of the term ``ld_valuable``; 0 drops it.
        classes: factor on the published weight of the term ``ld_cls``; 0 drops it.
        temperature: of the distributions of the sides, > 0.
        class_temperature: of the class scores, > 0.
    """

    main: float = 1.0
    valuable: float = 1.0
    classes: float = 1.0
    temperature: float = 10.0
    class_temperature: float = 2.0

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: a negative factor, all terms dropped, or a temperature not above 0.
        """
        refuse_negative(asdict(self))
        if self.main == self.valuable == self.classes == 0:
            raise DfmsdError(
                "loss.main, loss.valuable and loss.classes are all 0, so nothing is distilled; set one above 0"
            )
        for name, published in (("temperature", 10), ("class_temperature", 2)):
            if getattr(self, name) == 0:
                raise DfmsdError(f"loss.{name} must be above 0, got 0; the published value is {published}")


class LD(HeadMethod):
    r"""Imitate the distributions of the box sides at and near objects, and the class scores of objects.

    With $D(s, t) = \tau^2 \mathrm{mean}_b\, p_b(t) \log (p_b(t) / p_b(s))$, $p(x) = \mathrm{softmax}(x / \tau)$, the
    logits $s, t$ of a side over the bins $b$ and the class logits $x, y$ of student and teacher:

    $L_{main} = \frac{w}{N} \sum_{objects} \max_k \sigma(x_k) \cdot \mathrm{mean}_{sides} D(s, t)$,
    $L_{valuable} = \frac{w}{4 N} \sum_{near} IoU \cdot \mathrm{mean}_{sides} D(s, t)$ and
    $L_{cls} = 10\, \mathrm{mean}_{objects} D(x, y)$ over the classes

    with $w = 2 \cdot 0.25$, $\tau = 10$ for sides and 2 for classes. The first and last sum run over the anchors
    assigned to an object, the second over those of the valuable localization region, see
    `dfmsd.detectors.torchvision.gfl_loss.valuable_region`. The weights have no gradient. With a single class, whose
    softmax is 1 for both, there is no $L_{cls}$.

    Args:
        channels: of the aligned pair; not used.
        options: see `LDOptions`.

    Source: LD (arXiv 2102.12252, HikariTJU/LD, ``LDHead`` with main LD, valuable LD and main KD; without its feature
    imitation, for which you can add ``fitnet`` or ``pkd``). Differs from the official code in the mean over images,
    times the 2 images per process there: a sum over the batch makes the loss grow with it, as its authors warn.
    """

    name = "ld"
    Options = LDOptions
    purpose = "compares distributions of the sides of boxes"
    archs = ("gfl",)
    alike = ("classes", "strides", "bins")

    def __init__(self, channels: int, options: LDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        factors = {"ld_main": options.main, "ld_valuable": options.valuable, "ld_cls": options.classes}
        self.terms = tuple(name for name, factor in factors.items() if factor > 0)

    def compare(self, head: HeadLevel) -> dict[str, Tensor]:
        """Compute the terms ``ld_main``, ``ld_valuable`` and, with several classes, ``ld_cls``, each at least 0."""
        o, terms = self.options, {}
        student, teacher = (full_precision(side.logits) for side in (head.student, head.teacher))
        objects = head.objects.to(student.dtype)
        if o.main > 0:
            weight = objects * student.detach().sigmoid().amax(dim=2)
            terms["ld_main"] = o.main * MAIN_WEIGHT * self._sides(head, weight)
        if o.valuable > 0:
            terms["ld_valuable"] = o.valuable * VALUABLE_WEIGHT / VALUABLE_DIVISOR * self._sides(head, head.near)
        if o.classes > 0 and student.shape[2] > 1:  # the distribution over one class is the same for both
            error = functional.ld(student, teacher, objects, o.class_temperature)
            terms["ld_cls"] = o.classes * CLASS_WEIGHT * error / mean_count(objects.sum())
        return terms

    def _sides(self, head: HeadLevel, weight: Tensor) -> Tensor:
        """Sum the weighted mean over sides over anchors; per image, times the batch size of the official code."""
        student, teacher = (
            torch.unflatten(full_precision(side.box_deltas), 2, (SIDES, -1)) for side in (head.student, head.teacher)
        )
        weight = weight.unsqueeze(2).expand(-1, -1, SIDES)
        return functional.ld(student, teacher, weight, self.options.temperature) * (
            PUBLISHED_BATCH / SIDES / len(weight)
        )
