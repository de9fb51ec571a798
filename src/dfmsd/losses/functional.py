"""Attention, standardisation and correlation of feature maps: pure functions, no state.

Everything here expects the caller to have left autocast: enter `full_precision` first.
Within `dfmsd.utils.distributed.shared_step` "batch" means that of all processes together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dfmsd.utils.distributed import broadcast_from_first, statistics_sum, statistics_world_size

SPATIAL = (2, 3)
PER_CHANNEL = (0, 2, 3)


def full_precision(feature: Tensor) -> Tensor:
    """Give ``feature`` in float32, or as it is in float64.

    Half precision overflows in a sum of squares over one P3 map and loses the mean in bfloat16.
    """
    return feature if feature.dtype == torch.float64 else feature.float()


def spatial_attention(feature: Tensor, tau: float = 0.5) -> Tensor:
    r"""Where a feature map is strong.

    $A_s[n,1,i,j] = H W \cdot \mathrm{softmax}_{ij}(\mathrm{mean}_c |F[n,c,i,j]| / \tau)$

    Args:
        feature: ``N x C x H x W``.
        tau: temperature, > 0; smaller is more peaked.

    Returns:
        ``N x 1 x H x W``, mean 1 over the positions of each image.

    Source: the attention of FGD (yzd-v/FGD), which the masked line of methods took over.
    """
    n, _, height, width = feature.shape
    energy = feature.abs().mean(dim=1).flatten(1)
    return (height * width * (energy / tau).softmax(dim=1)).view(n, 1, height, width)


def channel_attention(feature: Tensor, tau: float = 0.5) -> Tensor:
    r"""Which channels of a feature map are strong.

    $A_c[n,c,1,1] = C \cdot \mathrm{softmax}_c(\mathrm{mean}_{ij} |F[n,c,i,j]| / \tau)$

    Args:
        feature: ``N x C x H x W``.
        tau: temperature, > 0; smaller is more peaked.

    Returns:
        ``N x C x 1 x 1``, mean 1 over the channels of each image.

    Source: the attention of FGD (yzd-v/FGD).
    """
    energy = feature.abs().mean(dim=SPATIAL, keepdim=True)
    return feature.shape[1] * (energy / tau).softmax(dim=1)


def channel_statistics(feature: Tensor, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Mean and ``std + eps`` of each channel over batch and positions, both ``1 x C x 1 x 1``.

    The standard deviation is the unbiased one; of a single value it is 0 (torch would give NaN).
    """
    centred, mean, count = _centred(feature)
    return mean, _deviation(_per_channel_sum(centred.square()), count) + eps


def standardize(feature: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Take scale and shift out of each channel.

    $z(F) = (F - \mathrm{mean}) / (\mathrm{std} + \epsilon)$, per channel over batch and positions.

    Args:
        feature: ``N x C x H x W``.
        eps: bounds the gradient of dead channels by ``1 / eps``.

    Returns:
        ``N x C x H x W``; zeros for a single value per channel.

    Source: PKD; differs from the official code in ``eps`` (1e-6 there), which lets dead channels
    explode.
    """
    centred, _, count = _centred(feature)
    return centred * (1 / (_deviation(_per_channel_sum(centred.square()), count) + eps))


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Mean over channels of the correlation between two feature maps: a scalar in -1..1.

    Channels without any variation count as 0.

    Args:
        first: ``N x C x H x W``.
        second: ``N x C x H x W``.
    """
    first, second = _centred(first)[0], _centred(second)[0]
    energies = _per_channel_sum(first.square()), _per_channel_sum(second.square())
    return _correlation(_per_channel_sum(first * second), *energies)


class Alignment(NamedTuple):
    """How far a student level is from a standardised teacher level, see `align_distributions`."""

    error: Tensor
    """Scalar, about 0..2; the only part with a gradient."""
    correlation: Tensor
    """Scalar, -1..1: `pearson` of the two."""
    difference: Tensor
    """``z(S) - z(T)``, ``N x C x H x W``."""


def align_distributions(
    student: Tensor, standard_teacher: Tensor, eps: float = 1e-3, weight: Tensor | None = None
) -> Alignment:
    r"""Compare the distributions of two feature maps, channel by channel.

    $error = \frac12 \mathrm{mean}\,w (z(S) - z(T))^2$; without a weight it is
    $\mathrm{mean}_c (1 - \mathrm{pearson}_c)$, up to $(n-1)/n$ and ``eps``.

    One pass gives what the loss, its progress measure and masking enhancement need, and the gradient is written
    out: on a CPU a chain of autograd operations takes three times as long and keeps twice the memory.

    Args:
        student: ``N x C x H x W``.
        standard_teacher: z(T), `standardize` of the teacher; never gets a gradient.
        eps: of the student's standardisation.
        weight: $w$ of each position, ``N x 1 x H x W``, of mean 1; the statistics of $z$ do not depend on it. None
            weighs all alike.

    Source: the semantic alignment of DFMSD is a reconstruction from its abstract ("consistent feature
    distributions" at each FPN layer); the formula is PKD's.
    """
    error, correlation, difference = _AlignDistributions.apply(student, standard_teacher, eps, weight)
    return Alignment(error, correlation, difference)


class _AlignDistributions(torch.autograd.Function):
    """With ``c = S - mean``, ``r = 1 / (std + eps)``, ``d = r c - z(T)`` and ``m`` values: ``error = sum d^2 / 2m``.

    ``d error / dS = (r d - b c) / m`` with ``b = r sum(d r c) / ((n - 1) std)`` per channel, since neither ``c`` nor
    ``z(T)`` has a mean that a gradient could move. With a weight ``d`` becomes ``w d`` in the gradient, less its mean.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, target: Tensor, eps: float, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        difference, mean, count = _centred(student)
        energy = _per_channel_sum(difference.square())
        deviation = _deviation(energy, count)
        scale = 1 / (deviation + eps)
        difference.mul_(scale).sub_(target)
        squares = _per_channel_sum(difference.square())
        target_energy = _per_channel_sum(target.square())
        standard_energy = scale.square() * energy
        covariance = (standard_energy + target_energy - squares) / 2  # of z(S) and z(T), without another pass
        projection = standard_energy - covariance  # sum(d z(S))
        correlation = _correlation(covariance, standard_energy, target_energy)
        drift = None
        if weight is not None:
            weighted = difference * weight
            squares = _per_channel_sum(weighted * difference)
            projection = squares + _per_channel_sum(weighted * target)
            drift = _per_channel_sum(weighted) / count
        shrink = scale * projection / (_degrees_of_freedom(count) * deviation).clamp_min(_tiny(student))
        values = count * student.shape[1]
        ctx.save_for_backward(student, target, mean, scale, shrink, weight, drift, statistics_world_size() / values)
        ctx.mark_non_differentiable(correlation, difference)
        return squares.sum() / (2 * values), correlation, difference

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
        student, target, mean, scale, shrink, weight, drift, share = ctx.saved_tensors
        gradient = gradient * share
        centred = student - mean  # first, since a constant channel has to give 0 and not a rounding error
        if weight is None:
            slope = centred.mul_(gradient * (scale.square() - shrink)).addcmul_(target, -gradient * scale)
        else:
            pull = (centred * scale).sub_(target).mul_(weight).sub_(drift)
            slope = pull.mul_(gradient * scale).addcmul_(centred, -gradient * shrink)
        return slope, None, None, None


def blend_error(first: Tensor, second: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared error of a blend, $\mathrm{mean}(w F_1 + (1 - w) F_2 - target)^2$.

    Both gradients are multiples of the blend's error, and that of the weight is a number that is known in advance: one
    map is kept for the backward pass, where autograd keeps four.

    Args:
        first: $F_1$, ``N x C x H x W``.
        second: $F_2$, ``N x C x H x W``.
        weight: $w$, a scalar.
        target: ``N x C x H x W``; never gets a gradient.
    """
    error: Tensor = _BlendError.apply(first, second, weight, target)
    return error


class _BlendError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        error = torch.lerp(second, first, weight).sub_(target)
        slope = 2 * ((error * first).sum() - (error * second).sum()) / error.numel()
        ctx.save_for_backward(error, weight, slope)
        return error.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        error, weight, slope = ctx.saved_tensors
        scale = 2 * gradient / error.numel()
        return error * (scale * weight), error * (scale * (1 - weight)), gradient * slope, None


def _centred(feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the feature without its mean, the mean, and the number of values that it is one of."""
    # From a value of the channel first: a constant then is exactly 0, not a rounding error that correlates with +-1.
    # Any value will do, so none needs a gradient.
    pivot = broadcast_from_first(feature[:1, :, :1, :1])
    shifted = feature - pivot
    # values of a channel; processes may have frames of unlike size
    count = statistics_sum(feature.new_full((), feature.numel() // feature.shape[1]))
    mean = _per_channel_sum(shifted) / count
    return shifted - mean, pivot + mean, count


def _per_channel_sum(feature: Tensor) -> Tensor:
    return statistics_sum(feature.sum(dim=PER_CHANNEL, keepdim=True))


def _degrees_of_freedom(count: Tensor) -> Tensor:
    return (count - 1).clamp_min(1)


def _tiny(feature: Tensor) -> float:
    return torch.finfo(feature.dtype).tiny


def _deviation(energy: Tensor, count: Tensor) -> Tensor:
    # Squares and a sum, since torch.std and norms over these three dimensions are scalar code on a CPU, 5 to 15 times
    # as slow. The lower end is there for the gradient: a square root has none at 0, where a dead channel is.
    return (energy / _degrees_of_freedom(count)).clamp_min(_tiny(energy)).sqrt()


def _correlation(covariance: Tensor, first_energy: Tensor, second_energy: Tensor) -> Tensor:
    scale = first_energy.sqrt() * second_energy.sqrt()
    return torch.where(scale > 0, covariance / scale.clamp_min(_tiny(scale)), 0).mean()
