from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import AMD, DFMSD, MGD, AMDOptions, DFMSDOptions, LossContext, MGDOptions
from dfmsd.losses.functional import spatial_attention, standardize

N, C, H, W = 2, 3, 4, 5
CONTEXT = LossContext([torch.zeros(0, 4)] * N, (32, 40), 8)


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, N, C, H, W, dtype=dtype)
    return student.requires_grad_(), 2 * teacher + 0.3


def build(dtype: torch.dtype = torch.float64, **options: object) -> AMD:
    return AMD(C, AMDOptions(**options)).to(dtype)


def slow_amd(loss: AMD, student: Tensor, teacher: Tensor) -> Tensor:
    o, weights = loss.options, dict(loss.named_parameters())
    total = torch.zeros((), dtype=student.dtype)
    for n in range(N):
        energy = torch.stack([teacher[n, :, i, j].abs().mean() / o.tau for i in range(H) for j in range(W)])
        attention = H * W * energy.exp() / energy.exp().sum()
        seen = student[n].clone()
        for i in range(H):
            for j in range(W):
                if attention[i * W + j] >= o.threshold:
                    seen[:, i, j] = 0
        hidden = conv2d(seen[None], weights["generation.0.weight"], weights["generation.0.bias"], padding=1)
        rebuilt = conv2d(
            hidden * (hidden > 0), weights["generation.2.weight"], weights["generation.2.bias"], padding=1
        )[0]
        pooled = torch.stack([teacher[n, c].sum() / (H * W) for c in range(C)])
        squeezed = weights["gate.1.weight"][:, :, 0, 0] @ pooled + weights["gate.1.bias"]
        excited = weights["gate.3.weight"][:, :, 0, 0] @ (squeezed * (squeezed > 0)) + weights["gate.3.bias"]
        for c in range(C):
            total = total + ((rebuilt[c] / (1 + (-excited[c]).exp()) - teacher[n, c]) ** 2).sum()
    return total / N


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_amd_equals_its_formula(dtype: torch.dtype, rtol: float) -> None:
    loss, (student, teacher) = build(dtype), pair(dtype)
    masked = float((spatial_attention(teacher) >= 1).double().mean())
    assert 0.1 < masked < 0.9
    fast, slow = loss(student, teacher, CONTEXT)["amd"], slow_amd(loss, student, teacher)
    assert_close(fast, slow, rtol=rtol, atol=0)
    gradients = [torch.autograd.grad(v, [student, *loss.parameters()], retain_graph=True) for v in (fast, slow)]
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).norm() <= rtol * expected.norm()


@pytest.mark.parametrize(("threshold", "ratio"), [(1e-9, 0.99), (1e9, 0.0)])
def test_without_its_gate_amd_of_a_standardized_teacher_is_the_spatial_branch_of_dfmsd_as_a_sum(
    threshold: float, ratio: float
) -> None:
    loss, (student, teacher) = build(gate=False, threshold=threshold), pair()
    options = DFMSDOptions(alpha=1.0, beta=0.0, channel=False, ratio=ratio, generation="full", enhancement=False)
    branch = DFMSD(C, options).double()
    branch.generation["spatial"].load_state_dict(loss.generation.state_dict())
    expected = branch(student, teacher, CONTEXT)["mask"] * C * H * W
    assert_close(loss(student, standardize(teacher), CONTEXT)["amd"], expected)


def test_without_mask_and_gate_amd_is_mgd_without_a_mask() -> None:
    loss, mgd = build(gate=False, threshold=1e9), MGD(C, MGDOptions(ratio=0.0)).double()
    mgd.load_state_dict(loss.state_dict())
    student, teacher = pair()
    assert_close(loss(student, teacher, CONTEXT)["amd"], mgd(student, teacher, CONTEXT)["mgd"])
    assert loss.default_weight == mgd.default_weight


def test_an_open_gate_changes_nothing_and_a_closed_one_leaves_the_target() -> None:
    loss, (student, teacher) = build(), pair()
    plain = build(gate=False)
    plain.load_state_dict({k: v for k, v in loss.state_dict().items() if not k.startswith("gate")})
    for bias, expected in (
        (100.0, plain(student, teacher, CONTEXT)["amd"]),
        (-100.0, teacher.square().sum() / N),
    ):
        torch.nn.init.zeros_(loss.gate[3].weight)
        torch.nn.init.constant_(loss.gate[3].bias, bias)
        assert_close(loss(student, teacher, CONTEXT)["amd"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, r"loss\.tau must be above 0, got 0\.0"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        losses.check_options("amd", **options)
