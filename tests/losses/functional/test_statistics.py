from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dfmsd.losses.functional import (
    channel_statistics,
    full_precision,
    pearson,
    standardize,
)


def test_standardized_channels_have_mean_zero_and_unbiased_deviation_one() -> None:
    feature = torch.tensor([1.0, 3.0, 10.0, 30.0]).view(2, 2, 1, 1)  # channels (1, 10) and (3, 30)
    half = 1 / math.sqrt(2)  # the std of (1, 10) is 9 / sqrt(2), so z = -+ 4.5 sqrt(2) / 9
    expected = torch.tensor([-half, -half, half, half]).view(2, 2, 1, 1)
    assert_close(standardize(feature, eps=1e-9), expected)


def test_standardize_adds_eps_to_the_deviation() -> None:
    feature = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    assert_close(standardize(feature, eps=0.5)[0, 0, 0, 1], torch.tensor(1 / (math.sqrt(2) + 0.5)))


@given(size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 5), st.integers(1, 5)))
def test_standardize_and_its_gradient_equal_those_of_torchs_own_deviation(size: tuple[int, int, int, int]) -> None:
    feature = (5 + 3 * torch.randn(size, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn(size, dtype=torch.float64)
    std, mean = torch.std_mean(feature, dim=(0, 2, 3), keepdim=True)
    slow = (feature - mean) / (std + 1e-3)
    fast = standardize(feature)
    assert_close(fast, slow)
    assert_close(*(torch.autograd.grad(value, feature, upstream)[0] for value in (fast, slow)))
    assert_close(channel_statistics(feature), (mean, std + 1e-3))


def test_standardize_is_exact_where_a_channels_mean_dwarfs_its_deviation() -> None:
    feature = 1000 + torch.randn(4, 3, 24, 24, dtype=torch.float64)
    assert_close(standardize(feature.float()), standardize(feature).float(), atol=1e-3, rtol=0)
    assert (standardize(torch.full((4, 3, 24, 24), 1234.567)) == 0).all()


@given(scale=st.floats(0.1, 100), shift=st.floats(-50, 50))
def test_standardize_ignores_scale_and_shift_of_a_channel(scale: float, shift: float) -> None:
    feature = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    changed = feature.clone()
    changed[:, 1] = scale * changed[:, 1] + shift
    assert_close(standardize(changed, eps=1e-12), standardize(feature, eps=1e-12))


@pytest.mark.parametrize(
    "feature",
    [
        pytest.param(torch.tensor([[[[3.0]], [[-7.0]]]]), id="one value per channel"),
        pytest.param(torch.zeros(2, 2, 3, 3), id="dead channels"),
        pytest.param(torch.full((2, 2, 3, 3), 0.1), id="constant channels"),
    ],
)
def test_constant_channels_become_zeros_with_finite_gradients(feature: torch.Tensor) -> None:
    feature = feature.requires_grad_()
    standard = standardize(feature)
    target = torch.ones_like(standard)
    (gradient,) = torch.autograd.grad((standard - target).square().sum(), feature)
    assert_close(standard, torch.zeros_like(standard), atol=1e-4, rtol=0)
    assert torch.isfinite(gradient).all()


def test_eps_bounds_the_gradient_of_a_nearly_dead_channel() -> None:
    feature = (1e-9 * torch.randn(1, 1, 4, 4, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(standardize(feature, eps=1e-3), feature, upstream)
    assert gradient.norm() <= 1e3 * upstream.norm() * (1 + 1e-6)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([1, 2, 3], [10, 20, 30], 1.0, id="scaled"),
        pytest.param([1, 2, 3], [5, 4, 3], -1.0, id="reversed"),
        pytest.param([1, 2, 3], [1, -2, 1], 0.0, id="uncorrelated"),
        pytest.param([1, 2, 3], [1, 2, 2], math.sqrt(3) / 2, id="by hand: 1 / sqrt(2 * 2/3)"),
        pytest.param([1, 2, 3], [4, 4, 4], 0.0, id="one constant"),
    ],
)
def test_pearson_by_hand(first: list[float], second: list[float], expected: float) -> None:
    a, b = (torch.tensor(v, dtype=torch.float32).view(1, 1, 1, 3) for v in (first, second))
    assert_close(pearson(a, b), torch.tensor(expected))


@pytest.mark.parametrize(("a", "b", "n"), [(0.1, 0.3, 77), (0.7, -0.3, 1001), (0.1, 0.1, 333), (1e-3, 7.7, 12345)])
def test_two_constant_channels_correlate_with_zero_whatever_the_rounding(a: float, b: float, n: int) -> None:
    assert pearson(torch.full((1, 1, 1, n), a), torch.full((1, 1, 1, n), b)) == 0


def test_pearson_equals_corrcoef_averaged_over_channels() -> None:
    first, second = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    rows = [torch.corrcoef(torch.stack([first[:, c].flatten(), second[:, c].flatten()]))[0, 1] for c in range(4)]
    assert_close(pearson(first, second), torch.stack(rows).mean())


def test_full_precision_leaves_no_half_and_keeps_double() -> None:
    for given_type, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert full_precision(torch.zeros(1, dtype=given_type)).dtype == expected
