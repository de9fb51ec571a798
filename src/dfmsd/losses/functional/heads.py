"""The terms of CrossKD and LD as functions of predictions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.losses.functional.statistics import channel_statistics, standardize
from dfmsd.utils.boxes import EPS, elementwise_iou


def match_statistics(student: Tensor, teacher: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Rescale each channel of the student to the teacher's mean and standard deviation, over batch and positions.

    $z(S) \cdot \mathrm{std}_T + \mathrm{mean}_T$ with $z$ of `standardize`.

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``; gets no gradient.
        eps: added to the student's standard deviation.

    Source: CrossKD (jbwang1997/CrossKD). Differs from the official code in ``eps``, 1e-6 there.

    >>> teacher = torch.rand(2, 8, 4, 4)
    >>> torch.allclose(match_statistics(3 * teacher + 1, teacher, eps=0.0), teacher, atol=1e-5)
    True
    """
    mean, deviation = channel_statistics(teacher.detach(), eps=0.0)
    return torch.addcmul(mean, standardize(student, eps), deviation)


def crosskd_cls(logits: Tensor, teacher: Tensor, valid: Tensor, beta: float = 1.0) -> Tensor:
    r"""Compute the focal distance of class scores, $\sum BCE(x, \sigma(t)) \cdot |\sigma(x) - \sigma(t)|^\beta$.

    Args:
        logits: $x$, the cross-head logits of ``A`` anchors and ``K`` classes, ``N x A x K``.
        teacher: $t$, ``N x A x K``; gets no gradient.
        valid: bool, ``N x A``; False leaves an anchor out.
        beta: focusing exponent, >= 1; larger values emphasize large differences.

    Returns:
        A sum, at least 0; the official code divides it by the number of positive anchors.

    Source: CrossKD (arXiv 2306.11369, jbwang1997/CrossKD).

    >>> crosskd_cls(torch.zeros(2, 6, 3), torch.zeros(2, 6, 3), torch.ones(2, 6, dtype=torch.bool))
    tensor(0.)
    """
    target = teacher.detach().sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    distance = (logits.sigmoid() - target).abs()
    focus = distance if beta == 1 else distance.pow(beta)
    return (entropy * focus * valid.unsqueeze(2)).sum()


def crosskd_reg(boxes: Tensor, teacher: Tensor, weight: Tensor, *, generalized: bool) -> Tensor:
    r"""Compute the weighted sum of $1 - GIoU$ or $-\log IoU$ of two sets of boxes.

    Args:
        boxes: the cross-head boxes, ``... x 4``, xyxy.
        teacher: ``... x 4``, xyxy; gets no gradient. Boxes without area do not count.
        weight: ``...``.
        generalized: True for $1 - GIoU$ (RetinaNet), False for $-\log IoU$ (FCOS).

    Source: CrossKD (arXiv 2306.11369, jbwang1997/CrossKD). Differs from the official code in boxes without area.

    >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    >>> crosskd_reg(boxes, boxes, torch.ones(1, 1), generalized=True)
    tensor(0.)
    """
    target = teacher.detach()
    overlap = elementwise_iou(boxes, target)
    error = 1 - overlap.giou if generalized else -overlap.iou.clamp(min=EPS).log()
    width, height = (target[..., 2:] - target[..., :2]).unbind(-1)
    return (error * (weight * (width * height > 0))).sum()


def ld(student: Tensor, teacher: Tensor, weight: Tensor, temperature: float = 10.0) -> Tensor:
    r"""Compute the weighted sum of Kullback-Leibler divergences between distributions over ``B`` bins (or classes).

    $\sum w\, \tau^2 \mathrm{mean}_b\, p_b(t) \log (p_b(t) / p_b(s))$ with $p(x) = \mathrm{softmax}(x / \tau)$.

    Args:
        student: logits $s$, ``... x B``.
        teacher: logits $t$, ``... x B``; gets no gradient.
        weight: $w$, ``...``.
        temperature: $\tau$, > 0.

    Source: LD (arXiv 2102.12252, HikariTJU/LD).

    >>> ld(torch.zeros(2, 6, 17), torch.zeros(2, 6, 17), torch.ones(2, 6))
    tensor(0.)
    """
    log_q, log_p = ((logits / temperature).log_softmax(-1) for logits in (student, teacher.detach()))
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).mean(-1)
    return temperature**2 * (weight * divergence).sum()
