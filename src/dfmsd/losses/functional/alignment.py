"""Distance of standardized feature maps, fused into one autograd function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dfmsd.losses.functional import statistics as st
from dfmsd.utils.distributed import statistics_world_size


class Alignment(NamedTuple):
    """Distance of a student level from a standardized teacher level, see `align_distributions`."""

    error: Tensor
    """Scalar, about 0 to 2; the only field with a gradient."""
    correlation: Tensor
    """Scalar in -1..1: `pearson` of the two."""
    difference: Tensor
    """``z(S) - z(T)``, ``N x C x H x W``."""


def align_distributions(student: Tensor, standard_teacher: Tensor, eps: float = 1e-3) -> Alignment:
    r"""Compare the distributions of two feature maps, channel by channel.

    $error = \frac12 \mathrm{mean} (z(S) - z(T))^2$, which is $\mathrm{mean}_c (1 - \mathrm{pearson}_c)$, up to
    $(n-1)/n$ and ``eps``.

    One pass computes the loss, its correlation and the difference for masking enhancement. The gradient is written by
    hand: on a CPU a chain of autograd operations takes three times as long and needs twice the memory
    (``benchmarks/losses.py``).

    Args:
        student: ``N x C x H x W``.
        standard_teacher: z(T), `standardize` of the teacher; gets no gradient.
        eps: added to the student's standard deviation.

    Source: the formula of PKD (arXiv 2207.02039).

    >>> alignment = align_distributions(torch.rand(2, 8, 4, 4), torch.zeros(2, 8, 4, 4))
    >>> [tuple(part.shape) for part in alignment]
    [(), (), (2, 8, 4, 4)]
    """
    return Alignment(*_StandardizedError.apply(student, standard_teacher, eps))


class _StandardizedError(torch.autograd.Function):
    """With ``c = S - mean``, ``r = 1 / (std + eps)``, ``d = r c - z(T)`` and ``m`` values, ``error = sum d^2 / 2m``.

    ``d error / dS = (r d - b c) / m`` with ``b = r sum(d r c) / ((n - 1) std)`` per channel: neither ``c`` nor ``z(T)``
    has a mean that a gradient could move.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        difference, mean, count = st.center(student)
        energy = st.channel_sum(difference.square())
        deviation = st.deviation(energy, count)
        scale = 1 / (deviation + eps)
        difference.mul_(scale).sub_(target)
        squares = st.channel_sum(difference.square())
        target_energy = st.channel_sum(target.square())
        standard_energy = scale.square() * energy
        covariance = (standard_energy + target_energy - squares) / 2  # of z(S) and z(T), without another pass
        projection = standard_energy - covariance  # sum(d z(S))
        correlation = st.correlation(covariance, standard_energy, target_energy)
        shrink = scale * projection / (st.degrees_of_freedom(count) * deviation).clamp_min(st.tiny(student))
        values = count * student.shape[1]
        ctx.save_for_backward(student, target, mean, scale, shrink, statistics_world_size() / values)
        ctx.mark_non_differentiable(correlation, difference)
        return squares.sum() / (2 * values), correlation, difference

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        student, target, mean, scale, shrink, share = ctx.saved_tensors
        gradient = gradient * share
        centered = student - mean  # first, so that a constant channel yields 0 instead of a rounding error
        slope = centered.mul_(gradient * (scale.square() - shrink)).addcmul_(target, -gradient * scale)
        return slope, None, None
