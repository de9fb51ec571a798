from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import LOSSES, LossContext, Method
from dfmsd.losses.functional import cwd, pearson
from dfmsd.types import LevelSpec

N, C, H, W = 2, 3, 4, 5
ON_FEATURES = sorted(set(LOSSES) - {"crosskd", "detrdistill", "ld"})
CONTEXT = LossContext([torch.zeros(0, 4)] * N, (32, 40), 8)


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, N, C, H, W, dtype=dtype)
    return student.requires_grad_(), 2 * teacher + 0.3


def method(name: str, **options: object) -> Method:
    return LOSSES[name](C, LOSSES[name].Options(**options)).double()


# Literal loops over the published formulas.


def slow_pkd(student: Tensor, teacher: Tensor, eps: float) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for c in range(C):
        columns = []
        for feature in (student, teacher):
            values = feature[:, c].flatten()
            std = ((values - values.sum() / len(values)) ** 2).sum().div(len(values) - 1).sqrt()
            columns.append((values - values.sum() / len(values)) / (std + eps))
        total = total + ((columns[0] - columns[1]) ** 2).sum()
    return total / (2 * student.numel())


def slow_cwd(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for n in range(N):
        for c in range(C):
            p, q = ((f[n, c].flatten() / tau).exp() for f in (teacher, student))
            p, q = p / p.sum(), q / q.sum()
            total = total + sum(a * (a / b).log() for a, b in zip(p, q, strict=True))
    return tau**2 * total / (N * C)


def slow_mgd(loss: Method, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    weights = dict(loss.generation.named_parameters())
    total = torch.zeros((), dtype=student.dtype)
    for n in range(N):
        hidden = conv2d(student[n : n + 1] * mask[n], weights["0.weight"], weights["0.bias"], padding=1)
        rebuilt = conv2d(hidden * (hidden > 0), weights["2.weight"], weights["2.bias"], padding=1)
        total = total + ((rebuilt[0] - teacher[n]) ** 2).sum()
    return total / N


def check_equal(fast: Tensor, slow: Tensor, wanted: list[Tensor], rtol: float) -> None:
    assert_close(fast, slow, rtol=rtol, atol=0)
    gradients = [torch.autograd.grad(value, wanted, retain_graph=True) for value in (fast, slow)]
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).norm() <= rtol * expected.norm()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("eps", [1e-3, 1e-6])
def test_pkd_equals_its_formula(dtype: torch.dtype, rtol: float, eps: float) -> None:
    student, teacher = pair(dtype)
    fast = method("pkd", eps=eps)(student, teacher, CONTEXT)["pkd"]
    check_equal(fast, slow_pkd(student, teacher, eps), [student], rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_cwd_equals_its_formula(dtype: torch.dtype, rtol: float, tau: float) -> None:
    student, teacher = pair(dtype)
    fast = method("cwd", tau=tau)(student, teacher, CONTEXT)["cwd"]
    check_equal(fast, slow_cwd(student, teacher, tau), [student], rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_mgd_equals_its_formula(dtype: torch.dtype, rtol: float) -> None:
    loss, (student, teacher) = method("mgd").to(dtype), pair(dtype)
    torch.manual_seed(7)
    fast = loss(student, teacher, CONTEXT)["mgd"]
    torch.manual_seed(7)
    mask = (torch.rand(N, 1, H, W, dtype=dtype) >= 0.65).to(dtype)
    assert 0 < int(mask.sum()) < mask.numel()
    check_equal(fast, slow_mgd(loss, student, teacher, mask), [student, *loss.parameters()], rtol)


def test_fitnet_is_the_mean_squared_error_by_hand() -> None:
    student, teacher = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([4.0, 0.0]).view(1, 1, 1, 2)
    assert method("fitnet")(student, teacher, CONTEXT)["fitnet"] == (9 + 4) / 2


def test_cwd_by_hand() -> None:
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([math.log(3.0), 0.0]).view(1, 1, 1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # p = (3/4, 1/4), q = (1/2, 1/2)
    assert_close(cwd(student, teacher), torch.tensor(expected))


# Known special cases.


def test_mgd_without_a_mask_is_the_error_of_the_generation_alone() -> None:
    loss, (student, teacher) = method("mgd", ratio=0.0), pair()
    expected = (loss.generation(student) - teacher).square().sum() / N
    assert_close(loss(student, teacher, CONTEXT)["mgd"], expected)


def test_mgd_masks_the_given_share_with_a_new_mask_in_every_step() -> None:
    loss = method("mgd", ratio=0.65)
    masked: list[Tensor] = []
    loss.generation.register_forward_pre_hook(lambda _, inputs: masked.append(inputs[0]))
    ones = torch.ones(1, C, 100, 100, dtype=torch.float64)
    for _ in range(2):
        loss(ones, ones, CONTEXT)
    assert (masked[0][:, :1] == masked[0]).all()  # one mask for all channels
    assert abs(float((masked[0] == 0).double().mean()) - 0.65) < 0.02
    assert (masked[0] != masked[1]).any()


@pytest.mark.parametrize("name", ON_FEATURES)
def test_gradcheck(name: str) -> None:
    loss = LOSSES[name](2, LOSSES[name].Options()).double()
    student, teacher = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64)

    def total(feature: Tensor) -> Tensor:
        torch.manual_seed(1)  # one mask for all evaluations
        return sum(loss(feature, teacher, LossContext([torch.zeros(0, 4)], (24, 24), 8)).values())

    assert torch.autograd.gradcheck(total, student.requires_grad_())


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_method_trains_on_different_pyramids_and_reports_the_correlation(name: str) -> None:
    student_levels = [LevelSpec(f"p{i}", 2, 2**i) for i in (3, 4, 5)]
    teacher_levels = [LevelSpec(f"t{i}", 8, 2**i) for i in (2, 3, 4)]
    criterion = losses.build(name, student_levels, teacher_levels)
    for parameter in criterion.parameters():
        torch.nn.init.uniform_(parameter)  # what starts at 0 would keep the gradient from what is behind it
    student, teacher = (
        {level.name: torch.randn(N, level.channels, 64 // level.stride, 64 // level.stride) for level in levels}
        for levels in (student_levels, teacher_levels)
    )
    for level in student.values():
        level.requires_grad_()
    terms = criterion(student, teacher, boxes=CONTEXT.boxes, size=(64, 64))
    assert list(terms) == [f"{term}/p{i}" for i in (3, 4) for term in criterion.terms]
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in criterion.parameters())
    aligned, _ = criterion.align[0](student["p3"], teacher["t3"])
    assert_close(criterion.diagnostics["pearson/p3"], pearson(aligned, teacher["t3"]).detach())


@pytest.mark.parametrize(
    ("name", "weight"), [("fitnet", 1.0), ("pkd", 10.0), ("cwd", 10.0), ("mgd", 2e-5), ("fgd", 1.0)]
)
def test_the_published_weight_is_the_default(name: str, weight: float) -> None:
    levels = [LevelSpec(f"p{i}", 2, 2**i) for i in (3, 4)]
    assert losses.build(name, levels, levels).weight == weight
    assert losses.build(name, levels, levels, weight=3.0).weight == 3.0


@pytest.mark.parametrize(("name", "options"), [("pkd", {"eps": 0}), ("cwd", {"tau": 0}), ("mgd", {"ratio": 1.5})])
def test_invalid_options_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(DfmsdError, match=rf"loss\.{next(iter(options))}"):
        losses.check_options(name, **options)
