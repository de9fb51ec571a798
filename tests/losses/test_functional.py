from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dfmsd.losses.functional import (
    align_distributions,
    channel_attention,
    channel_statistics,
    full_precision,
    pearson,
    spatial_attention,
    standardize,
)

# Two channels of one 2 x 2 image: mean |F| is [[1, 2], [3, 0]] over channels and (2, 1) over positions.
TWO_BY_TWO = torch.tensor([[[[2.0, -2.0], [4.0, 0.0]], [[0.0, 2.0], [-2.0, 0.0]]]], dtype=torch.float64)

sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


def softmax(*values: float) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_spatial_attention_of_a_two_by_two_map_is_the_softmax_of_its_mean_magnitudes(tau: float) -> None:
    expected = 4 * torch.tensor(softmax(1 / tau, 2 / tau, 3 / tau, 0.0)).view(1, 1, 2, 2)
    assert_close(spatial_attention(TWO_BY_TWO, tau), expected, check_dtype=False)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_channel_attention_of_two_channels_is_the_softmax_of_their_mean_magnitudes(tau: float) -> None:
    expected = 2 * torch.tensor(softmax(2 / tau, 1 / tau)).view(1, 2, 1, 1)
    assert_close(channel_attention(TWO_BY_TWO, tau), expected, check_dtype=False)


def test_attention_is_not_shared_between_the_images_of_a_batch() -> None:
    batch = torch.cat([TWO_BY_TWO, 5 * TWO_BY_TWO.flip(3)])
    for attention in (spatial_attention, channel_attention):
        assert_close(attention(batch)[1:], attention(batch[1:]))


def test_a_smaller_temperature_is_more_peaked() -> None:
    peaks = [spatial_attention(TWO_BY_TWO, tau).max() for tau in (0.1, 0.5, 5.0)]
    assert peaks[0] > peaks[1] > peaks[2] > 1


@given(size=sizes, scale=st.floats(0.01, 100), tau=st.floats(0.1, 5))
def test_attention_has_mean_one_in_every_image(size: tuple[int, int, int, int], scale: float, tau: float) -> None:
    feature = scale * torch.randn(size)
    spatial, channel = spatial_attention(feature, tau), channel_attention(feature, tau)
    assert spatial.shape == (size[0], 1, *size[2:])
    assert channel.shape == (*size[:2], 1, 1)
    assert_close(spatial.flatten(1).mean(1), torch.ones(size[0]))
    assert_close(channel.flatten(1).mean(1), torch.ones(size[0]))


def test_standardize_gives_each_channel_mean_zero_and_unbiased_deviation_one() -> None:
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
def test_standardize_is_blind_to_scale_and_shift_of_a_channel(scale: float, shift: float) -> None:
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
def test_channels_without_variation_give_zeros_and_finite_gradients(feature: torch.Tensor) -> None:
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


@given(size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 5), st.integers(2, 5)))
def test_the_alignment_error_is_one_minus_pearson_up_to_the_unbiased_deviation(size: tuple[int, int, int, int]) -> None:
    student, teacher = torch.randn(2, *size, dtype=torch.float64)
    n = size[0] * size[2] * size[3]
    error = align_distributions(student, standardize(teacher, eps=1e-12), eps=1e-12).error
    assert_close(error, (1 - pearson(student, teacher)) * (n - 1) / n)


@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    shift=st.floats(-20, 20),
    upstream=st.floats(-3, 3),
    weighted=st.booleans(),
)
def test_the_fused_alignment_equals_its_definition(
    size: tuple[int, int, int, int], shift: float, upstream: float, weighted: bool
) -> None:
    student = (shift + 3 * torch.randn(size, dtype=torch.float64)).requires_grad_()
    target = standardize(5 * torch.randn(size, dtype=torch.float64) - 1)
    weight = torch.rand(size[0], 1, *size[2:], dtype=torch.float64) if weighted else None
    slow = standardize(student) - target
    error = (slow.square() * (1 if weight is None else weight)).mean() / 2
    fused = align_distributions(student, target, weight=weight)
    assert_close(fused.difference, slow.detach())
    assert_close(fused.error, error)
    assert_close(fused.correlation, pearson(student.detach(), target))
    wanted, got = (torch.autograd.grad(upstream * value, student)[0] for value in (error, fused.error))
    assert_close(got, wanted, atol=1e-9, rtol=1e-7)


def test_the_fused_alignment_is_as_exact_in_float32_as_its_definition() -> None:
    student, target = 2 + torch.randn(2, 4, 16, 24, 24), standardize(torch.randn(4, 16, 24, 24))
    exact, slow, fused = student[0].double(), student[0].clone(), student[0].clone()
    gradients = []
    for feature, compare in (
        (exact, lambda x: (standardize(x) - target.to(x)).square().mean() / 2),
        (slow, lambda x: (standardize(x) - target).square().mean() / 2),
        (fused, lambda x: align_distributions(x, target).error),
    ):
        (gradient,) = torch.autograd.grad(compare(feature.requires_grad_()), feature)
        gradients.append(gradient.double())
    errors = [(gradient - gradients[0]).norm() / gradients[0].norm() for gradient in gradients[1:]]
    assert errors[1] < 1e-5
    assert errors[1] < 3 * errors[0]


def test_only_the_error_of_an_alignment_has_a_gradient() -> None:
    student, target = torch.randn(2, 1, 2, 3, 3)
    alignment = align_distributions(student.requires_grad_(), target)
    assert [value.requires_grad for value in alignment] == [True, False, False]


@pytest.mark.parametrize("value", [0.1, -7.0, 1234.567])
def test_a_single_value_per_channel_gets_no_gradient(value: float) -> None:
    student = torch.full((1, 3, 1, 1), value).requires_grad_()
    (gradient,) = torch.autograd.grad(align_distributions(student, torch.zeros(1, 3, 1, 1)).error, student)
    assert (gradient == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0])
def test_a_constant_student_gets_a_finite_gradient_and_no_correlation(value: float) -> None:
    student = torch.full((2, 2, 3, 3), value).requires_grad_()
    alignment = align_distributions(student, standardize(torch.randn(2, 2, 3, 3)))
    (gradient,) = torch.autograd.grad(alignment.error, student)
    assert torch.isfinite(gradient).all()
    assert abs(alignment.correlation) < 1e-3


def test_full_precision_leaves_no_half_and_keeps_double() -> None:
    for given_type, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert full_precision(torch.zeros(1, dtype=given_type)).dtype == expected
