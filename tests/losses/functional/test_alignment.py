from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dfmsd.losses.functional import (
    align_distributions,
    pearson,
    standardize,
)


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
)
def test_the_fused_alignment_equals_its_definition(
    size: tuple[int, int, int, int], shift: float, upstream: float
) -> None:
    student = (shift + 3 * torch.randn(size, dtype=torch.float64)).requires_grad_()
    target = standardize(5 * torch.randn(size, dtype=torch.float64) - 1)
    slow = standardize(student) - target
    error = slow.square().mean() / 2
    fused = align_distributions(student, target)
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
