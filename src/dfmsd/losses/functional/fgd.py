"""The terms of FGD as functions of two feature maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.losses.functional.attention import Attention


def fgd_focal(student: Tensor, teacher: Tensor, attention: Attention, *masks: Tensor) -> tuple[Tensor, ...]:
    r"""Compute the squared error weighted by the teacher's attention, under each mask.

    $\frac1N \sum M A_s(T) A_c(T) (X - T)^2$

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``.
        attention: of the teacher.
        *masks: ``N x 1 x H x W`` each, such as the foreground and the background of `object_masks`.

    Returns:
        A scalar for each mask.

    Source: FGD (arXiv 2111.11837, yzd-v/FGD).

    >>> teacher = torch.ones(2, 8, 4, 4)
    >>> even = Attention(torch.ones(2, 1, 4, 4), torch.ones(2, 8, 1, 1))
    >>> fgd_focal(teacher + 1, teacher, even, torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    (tensor(128.), tensor(0.))
    """
    # The sum over channels comes first: what follows works on one map per image instead of C.
    errors = attention.channel.flatten(2).mT @ (student - teacher).square().flatten(2)
    errors = errors * attention.spatial.flatten(2) / len(student)
    return tuple((mask.flatten(2) * errors).sum() for mask in masks)


def fgd_attention(student: Attention, teacher: Attention) -> Tensor:
    r"""Compute the L1 distance between the attention maps.

    $\frac1N (\sum |A_c(X) - A_c(T)| + \sum |A_s(X) - A_s(T)|)$

    Args:
        student: attention of the student.
        teacher: attention of the teacher.

    Source: FGD (arXiv 2111.11837, yzd-v/FGD).

    >>> even = Attention(torch.ones(2, 1, 4, 4), torch.ones(2, 8, 1, 1))
    >>> fgd_attention(even, even)
    tensor(0.)
    """
    distances = [F.l1_loss(s, t, reduction="sum") for s, t in zip(student, teacher, strict=True)]
    return torch.stack(distances).sum() / len(student.spatial)


def fgd_relation(student: Tensor, teacher: Tensor, student_context: Tensor, teacher_context: Tensor) -> Tensor:
    r"""Compute the squared error of the features with their global context added.

    $\frac1N \sum (X + g_S(X) - T - g_T(T))^2$

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``.
        student_context: $g_S(X)$, ``N x C x 1 x 1``, see `dfmsd.losses.fgd.GlobalContext`.
        teacher_context: $g_T(T)$, ``N x C x 1 x 1``.

    Source: FGD (arXiv 2111.11837, yzd-v/FGD).

    >>> features, context = torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 1, 1)
    >>> fgd_relation(features, features, context, context + 1)
    tensor(128.)
    """
    shift = student_context - teacher_context
    return F.mse_loss(student + shift, teacher, reduction="sum") / len(student)
