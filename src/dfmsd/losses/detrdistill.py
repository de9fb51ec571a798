"""DETRDistill on the predictions of queries."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.method import QueryMethod, QueryPair, refuse_negative

TERMS = ("match_cls", "match_l1", "match_giou")


@dataclass(frozen=True)
class DETRDistillOptions:
    """Options of DETRDistill.

    Args:
        classes: factor on the published weight of the term ``match_cls``; 0 drops it.
        l1: factor on the published weight of the term ``match_l1``; 0 drops it.
        giou: factor on the published weight of the term ``match_giou``; 0 drops it.
    """

    classes: float = 1.0
    l1: float = 1.0
    giou: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: a negative factor, or all terms dropped.
        """
        refuse_negative(asdict(self))
        if self.classes == self.l1 == self.giou == 0:
            raise DfmsdError("loss.classes, loss.l1 and loss.giou are all 0, so nothing is distilled; set one above 0")


class DETRDistill(QueryMethod):
    r"""Match the student's queries to the teacher's, and imitate the predictions of the match.

    With the logits $x$, $t$ and the boxes $b$, $c$ (centre, width and height as shares of the input) of the last
    decoder layers of student and teacher, and the $P$ pairs $(i, j)$ that the Hungarian algorithm finds:

    $L_{cls} = \frac{1}{P} \sum \sum_k BCE(x_{ik}, \sigma(t_{jk}))$, $L_{l1} = \frac{5}{P} \sum |b_i - c_j|_1$ and
    $L_{giou} = \frac{2}{P} \sum (1 - GIoU(b_i, c_j))$

    The cost of a pair is the sum of the three with their published weights, whatever the options. Every query of the
    smaller set has a match, those that find no object included. Scores of a teacher with a softmax are its
    probabilities.

    Args:
        channels: not used.
        options: see `DETRDistillOptions`.

    Source: DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156, BIVLab-USTC/DETRDistill, Hungarian-matching logits
    distillation; without its feature and query-prior distillation). Differs from the official code in comparing the
    last decoder layers only, since the numbers of layers may differ; in unmatched queries, which have no target here,
    while the official code is written for equal numbers of queries; and in the teacher's boxes, which are not clipped
    to the image.
    """

    name = "detrdistill"
    Options = DETRDistillOptions

    def __init__(self, channels: int, options: DETRDistillOptions) -> None:
        super().__init__(channels, options)
        factors = zip(TERMS, (options.classes, options.l1, options.giou), strict=True)
        self.factors = {name: factor for name, factor in factors if factor > 0}
        self.terms = tuple(self.factors)

    def compare(self, queries: QueryPair) -> dict[str, Tensor]:
        """Compute the terms ``match_cls``, ``match_l1`` and ``match_giou``, each at least 0."""
        terms = dict(zip(TERMS, functional.detrdistill(*queries), strict=True))
        return {name: factor * terms[name] for name, factor in self.factors.items()}
