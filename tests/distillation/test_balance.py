from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dfmsd.distillation.balance import GradientBalance, balance_share, gradient_norm, is_balance, term_groups
from dfmsd.distillation.task import DistillationTask

BOTH = ("mask", "sfa")


def pyramid() -> dict[str, Tensor]:
    """Two levels whose values have the norms 3 and 4: together 5."""
    return {
        "p3": torch.full((1, 1, 3, 3), 1.0).requires_grad_(),
        "p4": torch.full((1, 1, 2, 2), 2.0).requires_grad_(),
    }


def quadratic(levels: dict[str, Tensor], factor: float) -> Tensor:
    """Its gradient on a level is ``factor`` times the level, so of norm ``5 * factor``."""
    return factor * sum(level.square().sum() for level in levels.values()) / 2


def measure(balance: GradientBalance, task: float, mask: float, sfa: float) -> dict[str, Tensor]:
    levels = pyramid()
    terms = {
        "mask/p3": quadratic({"p3": levels["p3"]}, mask),
        "mask/p4": quadratic({"p4": levels["p4"]}, mask),
        "sfa/p3": quadratic(levels, sfa),
    }
    return balance(terms, quadratic(levels, task), levels)


def test_terms_are_summed_over_their_levels() -> None:
    one = torch.ones(())
    assert term_groups({"mask/p3": one, "sfa/p3": 2 * one, "mask/p4": 3 * one}) == {"mask": 4 * one, "sfa": 2 * one}


def test_the_norm_runs_over_the_whole_pyramid() -> None:
    levels = pyramid()
    value = quadratic(levels, 2.0)
    assert gradient_norm(value, levels) == pytest.approx(10.0)
    assert gradient_norm(quadratic({"p3": levels["p3"]}, 2.0), levels) == pytest.approx(6.0)
    value.backward()  # the graph is kept
    assert all(level.grad is not None for level in levels.values())


def test_a_value_that_does_not_reach_the_pyramid_has_norm_zero() -> None:
    assert gradient_norm(torch.ones(2, requires_grad=True).sum(), pyramid()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_gradient_of_a_mean_over_a_large_level_is_measured_in_every_precision(dtype: torch.dtype) -> None:
    """Its elements, 2 / n, are not far from the smallest number of float16, 2^-24."""
    level = torch.ones(1, 48, 512, 512, dtype=dtype).requires_grad_()
    norm = gradient_norm(level.float().square().mean(), {"p3": level})
    assert float(norm) == pytest.approx(2 / math.sqrt(level.numel()), rel=1e-2)


def test_the_factor_is_ratio_times_the_tasks_norm_over_that_of_all_terms_which_keep_their_ratios() -> None:
    balance = GradientBalance(BOTH, ratio=0.5)
    terms = measure(balance, task=6.0, mask=2.0, sfa=0.1)
    factor = 0.5 * 6 / 2.1  # both gradients point along the pyramid: their norms add up
    assert balance.factor == pytest.approx(factor)
    assert_close(terms["mask/p3"], torch.tensor(factor * 2 * 9 / 2))
    assert_close(terms["mask/p4"], torch.tensor(factor * 2 * 16 / 2))
    assert_close(terms["sfa/p3"], torch.tensor(factor * 0.1 * 25 / 2))


def test_opposite_terms_are_measured_by_their_sum() -> None:
    balance = GradientBalance(BOTH, ratio=1.0)
    measure(balance, task=6.0, mask=3.0, sfa=-1.0)
    assert balance.factor == pytest.approx(3.0)


def test_scaled_terms_have_the_target_gradient_norm() -> None:
    balance = GradientBalance(["far"], ratio=0.25)
    levels = pyramid()
    task = quadratic(levels, 3.0)
    terms = balance({"far/p3": 1e-5 * (levels["p3"] - 7).pow(4).sum()}, task, levels)
    assert gradient_norm(terms["far/p3"], levels) == pytest.approx(0.25 * float(gradient_norm(task, levels)))


def test_the_first_calls_are_averaged() -> None:
    balance = GradientBalance(BOTH, ratio=1.0)
    measure(balance, task=1.0, mask=1.0, sfa=1.0)
    measure(balance, task=3.0, mask=1.0, sfa=7.0)
    assert balance.factor == pytest.approx(4 / 10)


def test_after_the_first_calls_only_every_tenth_is_measured() -> None:
    balance = GradientBalance(BOTH, ratio=1.0, first=2, interval=3)
    measured = []
    for _ in range(9):
        measured.append(balance.measures)
        measure(balance, task=1.0, mask=1.0, sfa=1.0)
    assert measured == [True, True, False, False, True, False, False, True, False]


def test_the_factor_follows_gradients_that_change() -> None:
    balance = GradientBalance(BOTH, ratio=1.0, interval=1)
    for _ in range(10):
        measure(balance, task=1.0, mask=1.0, sfa=1.0)
    measure(balance, task=11.0, mask=1.0, sfa=6.0)  # a tenth of the way
    assert balance.factor == pytest.approx(2.0 / 2.5)
    for _ in range(150):
        measure(balance, task=3.0, mask=1.0, sfa=5.0)
    assert balance.factor == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_that_is_not_finite_does_not_stay() -> None:
    balance = GradientBalance(BOTH, ratio=1.0)
    measure(balance, task=4.0, mask=1.0, sfa=2.0)
    measure(balance, task=4.0, mask=math.inf, sfa=2.0)
    assert balance.factor == pytest.approx(4 / 3)


def test_before_the_first_batch_and_without_gradient_the_factor_is_one() -> None:
    balance = GradientBalance(BOTH, ratio=1.0)
    assert balance.factor == 1
    measure(balance, task=2.0, mask=0.0, sfa=0.0)
    assert balance.factor == 1


def test_the_share_falls_along_half_a_cosine() -> None:
    shares = [balance_share(progress, "cosine") for progress in (0, 1 / 3, 1 / 2, 2 / 3, 1)]
    assert shares == pytest.approx([1, 3 / 4, 1 / 2, 1 / 4, 0])
    assert {balance_share(progress, "constant") for progress in (0, 1 / 2, 1)} == {1.0}


def test_the_share_scales_the_terms_and_not_the_measurement() -> None:
    balance = GradientBalance(BOTH, ratio=0.5)
    balance.share = 0.25
    terms = measure(balance, task=6.0, mask=2.0, sfa=1.0)
    assert balance.factor == pytest.approx(0.25 * 0.5 * 6 / 3)
    assert_close(terms["sfa/p3"], torch.tensor(0.25 * 25 / 2))
    assert balance.norms.tolist() == pytest.approx([6 * 5, 3 * 5])


def test_the_measurement_survives_a_checkpoint() -> None:
    first, second = (GradientBalance(BOTH, ratio=1.0, first=2) for _ in range(2))
    measure(first, task=4.0, mask=1.0, sfa=2.0)
    second.load_state_dict(first.state_dict())
    assert second.factor == first.factor == pytest.approx(4 / 3)
    assert second.measures
    measure(second, task=4.0, mask=1.0, sfa=2.0)
    assert not second.measures


def test_the_factors_carry_no_gradient() -> None:
    balance = GradientBalance(BOTH, ratio=1.0)
    levels = pyramid()
    terms = balance({"mask/p3": quadratic(levels, 2.0), "sfa/p3": quadratic(levels, 2.0)}, quadratic(levels, 1), levels)
    (gradient,) = torch.autograd.grad(terms["mask/p3"], levels["p3"])
    assert_close(gradient, levels["p3"].detach() / 2)  # a quarter of 2 x


def test_other_terms_are_neither_measured_nor_scaled() -> None:
    balance = GradientBalance(["mask"], ratio=0.5)
    terms = measure(balance, task=6.0, mask=2.0, sfa=0.1)
    assert list(terms) == ["mask/p3", "mask/p4", "sfa/p3"]
    assert balance.factor == pytest.approx(1.5)
    assert_close(terms["sfa/p3"], torch.tensor(0.1 * 25 / 2))


@pytest.mark.parametrize(
    ("name", "factor"), [("balance", True), ("T2.balance", True), ("mask/p3", False), ("T1.sfa/p3", False)]
)
def test_a_factor_is_known_by_its_name(name: str, factor: bool) -> None:
    assert is_balance(name) is factor


def test_the_tasks_gradient_is_measured_on_labeled_images(task: DistillationTask) -> None:
    labeled, whole = pyramid(), {}
    for name, level in labeled.items():
        whole[name] = torch.cat([level, torch.zeros_like(level)])
    balance = GradientBalance(["mask"], ratio=0.5)
    balance({"mask/p3": quadratic(whole, 2.0)}, quadratic(labeled, 6.0), whole, labeled)
    assert balance.factor == pytest.approx(0.5 * 6 / 2)

    task.train()
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0])} for _ in range(2)]
    task(torch.rand(3, 3, 64, 64), targets)  # the third image has no annotations
    (lesson,) = task.lessons
    assert lesson.balance is not None
    assert lesson.balance.factor > 0
