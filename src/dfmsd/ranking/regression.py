"""Ridge regression from the means and covariances of two sets of channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.losses.basis import LevelMoments

NEGLIGIBLE = 1e-10
"""Variance of a constant channel relative to its mean square, at most: what rounding of float32 features leaves."""


class Explained(NamedTuple):
    """Sums over cells of squared values, averaged over channels in units of each channel's variance."""

    residual: float
    """What a regression leaves."""
    total: float
    """What there is."""


def r_squared(parts: Iterable[Explained]) -> float | None:
    """Return the share of the variance that regressions explain, at most 1; None if there is none.

    >>> r_squared([Explained(1.0, 2.0), Explained(0.0, 2.0)])
    0.75
    """
    parts = list(parts)
    total = sum(part.total for part in parts)
    return 1 - sum(part.residual for part in parts) / total if total > 0 else None


def ridge_weights(covariance: Tensor, inputs: slice, outputs: slice, penalty: float) -> Tensor:
    r"""Return the weights of a ridge regression between centered channels.

    $W = (C_{xx} + \lambda\, \mathrm{diag}(C_{xx}))^{-1} C_{xy}$: the regression of standardized channels, in the
    units of the inputs. A constant input gets the weight 0.

    Args:
        covariance: of all channels, ``C x C``.
        inputs: the channels $x$.
        outputs: the channels $y$.
        penalty: $\lambda$, above 0.

    Returns:
        ``C_x x C_y``.
    """
    gram, cross = covariance[inputs, inputs], covariance[inputs, outputs]
    std = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(std > 0, 1 / std, 0)
    correlation = gram * torch.outer(scale, scale) + penalty * torch.eye(len(gram), dtype=gram.dtype)
    weights: Tensor = scale[:, None] * torch.linalg.solve(correlation, scale[:, None] * cross)
    return weights


def explain(fit: LevelMoments, held_out: LevelMoments, inputs: slice, outputs: slice) -> Explained:
    """Fit a ridge regression on some cells, and apply it to others.

    The penalty is the number of inputs over the number of cells: few cells cannot tell many weights.

    Args:
        fit: moments of the cells to fit on, at least one.
        held_out: moments of the other cells, at least one.
        inputs: the channels to predict from.
        outputs: the channels to predict; constant ones do not count.
    """
    weights = ridge_weights(_covariance(fit), inputs, outputs, len(fit.mean[inputs]) / fit.cells)
    shift = held_out.mean - fit.mean
    covariance = _covariance(held_out)
    moments = covariance + torch.outer(shift, shift)  # about the means of the fit, as the predictions are
    error = (
        moments[outputs, outputs].diagonal()
        - 2 * (weights * moments[inputs, outputs]).sum(dim=0)
        + (weights * (moments[inputs, inputs] @ weights)).sum(dim=0)
    )
    total = covariance.diagonal()[outputs]
    unit = (total + _covariance(fit).diagonal()[outputs]) / 2
    alive = unit > 0
    if not alive.any():
        return Explained(0.0, 0.0)
    sums = (held_out.cells * (values[alive] / unit[alive]).mean() for values in (error, total))
    return Explained(*(float(value) for value in sums))


def _covariance(moments: LevelMoments) -> Tensor:
    """Return the covariance with rows and columns of 0 for constant channels."""
    covariance = moments.covariance
    alive = covariance.diagonal() > NEGLIGIBLE * moments.products.diagonal() / moments.cells
    return covariance * torch.outer(alive, alive)
