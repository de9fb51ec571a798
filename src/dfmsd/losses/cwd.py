"""CWD at one pyramid level: where each channel is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dfmsd.errors import DfmsdError
from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class CWDOptions:
    """Switches of CWD.

    Args:
        tau: temperature, > 0.
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            DfmsdError: ``tau`` is not above 0.
        """
        if self.tau <= 0:
            raise DfmsdError(f"loss.tau: {self.tau} is not above 0; the published one is 1")


class CWD(Method):
    r"""Imitate the distribution of each channel over the positions.

    $L = \frac{\tau^2}{N C} \sum_{n,c} KL(p \,\|\, q)$ with $p = \mathrm{softmax}_{ij}(T / \tau)$ and
    $q = \mathrm{softmax}_{ij}(X / \tau)$.

    Args:
        channels: of the aligned pair.
        options: see `CWDOptions`.

    Source: CWD (arXiv 2011.13256, mmrazor ``ChannelWiseDivergence``), weight 10 on each level.
    """

    Options = CWDOptions
    terms = ("cwd",)
    default_weight = 10.0

    def __init__(self, channels: int, options: CWDOptions) -> None:
        super().__init__(channels, options)
        self.tau = options.tau

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give the term ``cwd``, at least 0.

        Args:
            student: aligned, ``N x C x H x W``.
            teacher: ``N x C x H x W``.
            context: not used.
        """
        return {"cwd": channel_divergence(student, teacher, self.tau)}


def channel_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""Mean over images and channels of $\tau^2 KL(\mathrm{softmax}(T / \tau) \,\|\, \mathrm{softmax}(X / \tau))$.

    The gradient of the divergence is ``q - p``, so that one map is kept for the backward pass.

    Args:
        student: ``N x C x H x W``.
        teacher: ``N x C x H x W``; never gets a gradient.
        tau: temperature, > 0.
    """
    student, teacher = (feature if tau == 1 else feature / tau for feature in (student.flatten(2), teacher.flatten(2)))
    divergence: Tensor = _Divergence.apply(student, teacher)
    return tau**2 * divergence


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        log_p, q = teacher.log_softmax(2), student.log_softmax(2)
        p = log_p.exp()
        ctx.rows = p.shape[0] * p.shape[1]
        divergence: Tensor = log_p.sub_(q).mul_(p).sum() / ctx.rows
        ctx.save_for_backward(q.exp_().sub_(p))
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * (gradient / ctx.rows), None
