"""DETRDistill's terms: two sets of predictions, matched one to one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.types import Queries
from dfmsd.utils.boxes import elementwise_iou

Matches = tuple[Tensor, Tensor, Tensor]
"""Indices of the image, of the student's query and of the teacher's, each of length ``P``."""


class QueryWeights(NamedTuple):
    """Weights of the terms, and of the costs by which queries are matched."""

    classes: float
    l1: float
    giou: float


PUBLISHED = QueryWeights(1.0, 5.0, 2.0)
"""Those of the official configs."""


@torch.no_grad()
def match_queries(student: Queries, teacher: Queries, weights: QueryWeights = PUBLISHED) -> Matches:
    r"""Match the queries of student and teacher one to one, so that the sum of the costs is smallest.

    Query $i$ of the student with the logits $x_i$ and the box $b_i$ and query $j$ of the teacher with the logits $t_j$
    and the box $c_j$ cost

    $w_c \sum_k BCE(x_{ik}, \sigma(t_{jk})) + w_1 |b_i - c_j|_1 - w_g GIoU(b_i, c_j)$

    Args:
        student: ``N x Q x ...``.
        teacher: ``N x M x ...``.
        weights: $w_c$, $w_1$ and $w_g$.

    Returns:
        The ``P`` = ``N`` min(``Q``, ``M``) matches; the other queries of the larger set stay unmatched.

    Source: DETRDistill (arXiv 2211.10156, BIVLab-USTC/DETRDistill, ``DistillHungarianAssigner``).

    >>> queries = Queries(torch.randn(1, 4, 3), torch.rand(1, 4, 4))
    >>> image, own, other = match_queries(queries, Queries(*(value.flip(1) for value in queries)))
    >>> own.tolist(), other.tolist()
    ([0, 1, 2, 3], [3, 2, 1, 0])
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and only this loss needs it

    scores = teacher.logits.sigmoid()
    # BCE(x, p) = softplus(x) - x p, which is a product of matrices for all pairs
    cost = weights.classes * (F.softplus(student.logits).sum(2, keepdim=True) - student.logits @ scores.mT)
    cost += weights.l1 * torch.cdist(student.boxes, teacher.boxes, p=1)
    corners = student.corners.unsqueeze(2), teacher.corners.unsqueeze(1)
    cost -= weights.giou * elementwise_iou(*corners).giou
    worst = torch.finfo(cost.dtype).max  # a loss that is not finite is noticed later
    matched = [linear_sum_assignment(image) for image in cost.nan_to_num(worst, worst, worst).cpu().numpy()]
    images = [torch.full((len(own),), index) for index, (own, _) in enumerate(matched)]
    queries = [torch.cat([torch.as_tensor(pair[side]) for pair in matched]) for side in (0, 1)]
    return tuple(value.to(cost.device) for value in (torch.cat(images), *queries))  # type: ignore[return-value]


def detrdistill(student: Queries, teacher: Queries, weights: QueryWeights = PUBLISHED) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compare the predictions of matched queries.

    $\frac{w_c}{P} \sum_{(i, j)} \sum_k BCE(x_{ik}, \sigma(t_{jk}))$,
    $\frac{w_1}{P} \sum_{(i, j)} |b_i - c_j|_1$ and $\frac{w_g}{P} \sum_{(i, j)} (1 - GIoU(b_i, c_j))$ over the $P$
    matches of `match_queries`.

    Args:
        student: ``N x Q x ...``.
        teacher: ``N x M x ...``; gets no gradient.
        weights: $w_c$, $w_1$ and $w_g$.

    Returns:
        The terms of classes, L1 and GIoU. The last two are 0 for equal boxes, the first one is the entropy of the
        teacher's scores for equal classes.

    Source: DETRDistill (arXiv 2211.10156, BIVLab-USTC/DETRDistill, ``loss_single_distill``).

    >>> queries = Queries(torch.randn(1, 4, 3), torch.rand(1, 4, 4))
    >>> [round(float(term), 3) for term in detrdistill(queries, queries)[1:]]
    [0.0, 0.0]
    """
    image, own, other = match_queries(student, teacher, weights)
    found = Queries(*(value[image, own] for value in student))
    wanted = Queries(*(value[image, other].detach() for value in teacher))
    pairs = max(len(image), 1)
    classes = F.binary_cross_entropy_with_logits(found.logits, wanted.logits.sigmoid(), reduction="sum")
    distance = F.l1_loss(found.boxes, wanted.boxes, reduction="sum")
    overlap = (1 - elementwise_iou(found.corners, wanted.corners).giou).sum()
    return weights.classes * classes / pairs, weights.l1 * distance / pairs, weights.giou * overlap / pairs
