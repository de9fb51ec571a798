"""Ridge regression from moments: against least squares on the cells themselves, and known special cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dfmsd.losses.basis import LevelMoments
from dfmsd.ranking.regression import Explained, explain, r_squared, ridge_weights

X, Y = slice(0, 5), slice(5, 8)


def cells(seed: int, count: int = 40, noise: float = 0.5) -> Tensor:
    """Five inputs of unlike scale and offset, and three outputs that depend on them; the dependence is always one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator) @ torch.randn(5, 5, generator=torch.Generator().manual_seed(9))
    y = x @ torch.linspace(-1, 1, 15).view(5, 3) + noise * torch.randn(count, 3, generator=generator)
    return torch.cat([x, y], dim=1) * torch.linspace(0.1, 10, 8) + torch.arange(8)


def moments_of(values: Tensor) -> LevelMoments:
    moments = LevelMoments(5, 3)
    maps = values.T.reshape(1, 8, 1, -1)
    moments.add(maps[:, :5], maps[:, 5:])
    return moments


def r2(fit: Tensor, held_out: Tensor, inputs: slice = X, outputs: slice = Y) -> float | None:
    return r_squared([explain(moments_of(fit), moments_of(held_out), inputs, outputs)])


def reference(fit: Tensor, held_out: Tensor) -> float:
    """Ridge regression as least squares with extra rows, on standardized inputs; R2 in units of the outputs."""
    fit, held_out = fit.double(), held_out.double()
    mean, std = fit.mean(dim=0), fit.std(dim=0, correction=0)
    penalty = 5 / len(fit)
    x, y = (fit[:, X] - mean[X]) / std[X], fit[:, Y] - mean[Y]
    rows = np.concatenate([x.numpy(), np.sqrt(penalty * len(fit)) * np.eye(5)])
    weights = np.linalg.lstsq(rows, np.concatenate([y.numpy(), np.zeros((5, 3))]), rcond=None)[0]
    predicted = ((held_out[:, X] - mean[X]) / std[X]).numpy() @ weights + mean[Y].numpy()
    unit = (fit[:, Y].var(dim=0, correction=0) + held_out[:, Y].var(dim=0, correction=0)).numpy()
    truth = held_out[:, Y].numpy()
    residual = (np.square(truth - predicted).mean(axis=0) / unit).sum()
    total = (truth.var(axis=0) / unit).sum()
    return float(1 - residual / total)


@pytest.mark.parametrize("counts", [(40, 40), (300, 20), (6, 50)])
def test_it_is_least_squares_with_a_penalty(counts: tuple[int, int]) -> None:
    fit, held_out = cells(0, counts[0]), cells(1, counts[1])
    assert r2(fit, held_out) == pytest.approx(reference(fit, held_out), abs=1e-5)


def test_the_weights_are_those_of_the_normal_equations() -> None:
    x = cells(0).double()
    centered = x - x.mean(dim=0)
    covariance = centered.T @ centered / len(x)
    found = ridge_weights(covariance, X, Y, penalty=0.1)
    gradient = covariance[X, X] @ found - covariance[X, Y] + 0.1 * covariance[X, X].diagonal()[:, None] * found
    assert_close(gradient, torch.zeros_like(gradient))


def test_a_linear_map_is_read_and_noise_is_not() -> None:
    assert r2(cells(0, 5000, noise=0), cells(1, noise=0)) == pytest.approx(1, abs=1e-2)
    noise = [torch.randn(count, 8) for count in (5000, 500)]
    assert r2(*noise) == pytest.approx(0, abs=0.02)


def test_the_units_of_the_channels_do_not_matter() -> None:
    fit, held_out = cells(0), cells(1)
    scale, offset = torch.logspace(-1, 1, 8).flip(0), torch.linspace(-3, 3, 8)
    assert r2(fit * scale + offset, held_out * scale + offset) == pytest.approx(r2(fit, held_out), abs=1e-4)


def test_either_side_can_be_read() -> None:
    three_of_five = r2(cells(0, 2000, 0), cells(1, 2000, 0), Y, X)
    assert three_of_five is not None
    assert 0.3 < three_of_five < 0.9


def test_constant_channels_do_not_count() -> None:
    fit, held_out = cells(0), cells(1)
    expected = r2(fit, held_out, X, slice(5, 7))
    fit[:, 7] = held_out[:, 7] = 1234.5
    assert r2(fit, held_out) == pytest.approx(expected, abs=1e-6)
    fit[:, 0] = 77.7  # tells nothing in the fit, whatever it does later
    assert r2(fit, held_out) == pytest.approx(r2(fit, held_out, slice(1, 5)), abs=0.05)


def test_without_variance_there_is_nothing_to_explain() -> None:
    assert r2(torch.ones(4, 8), torch.ones(4, 8)) is None
    assert r_squared([]) is None


def test_levels_are_pooled() -> None:
    assert r_squared([Explained(1, 2), Explained(3, 2), Explained(0, 4)]) == 0.5
