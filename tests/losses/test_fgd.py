from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import FGD, FGDOptions, LossContext
from dfmsd.losses.fgd import GlobalContext
from dfmsd.losses.functional import object_masks
from dfmsd.types import LevelSpec

N, C, H, W = 3, 8, 5, 7
STRIDE = 8
BOXES = [
    torch.tensor([[4.0, 9.0, 26.0, 22.0], [20.0, 6.0, 30.0, 38.0], [41.0, 33.0, 56.0, 40.0]]),  # the last at the edge
    torch.zeros(0, 4),
    torch.tensor([[16.0, 8.0, 16.5, 8.5]]),
]
CONTEXT = LossContext(BOXES, (H * STRIDE, W * STRIDE), STRIDE)
DTYPES = pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, N, C, H, W, dtype=dtype)
    return student.requires_grad_(), 2 * teacher + 0.3


def build(dtype: torch.dtype = torch.float64, **options: float) -> FGD:
    """FGD with a relation that is not 0, as it is at first."""
    loss = FGD(C, FGDOptions(**options)).to(dtype)
    for parameter in loss.parameters():
        nn.init.normal_(parameter)
    return loss


# Literal loops over the published formulas.


def slow_masks(boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    foreground, background = torch.zeros(2, N, 1, H, W, dtype=torch.float64)
    for n in range(N):
        for x1, y1, x2, y2 in (boxes[n].double() / STRIDE).tolist():
            left, top, right, bottom = math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)
            for i in range(max(top, 0), min(bottom, H - 1) + 1):
                for j in range(max(left, 0), min(right, W - 1) + 1):
                    value = 1 / ((bottom - top + 1) * (right - left + 1))
                    foreground[n, 0, i, j] = max(foreground[n, 0, i, j].item(), value)
        outside = [(i, j) for i in range(H) for j in range(W) if foreground[n, 0, i, j] == 0]
        for i, j in outside:
            background[n, 0, i, j] = 1 / len(outside)
    return foreground, background


def slow_attention(feature: Tensor, tau: float) -> tuple[dict[tuple[int, ...], Tensor], dict[tuple[int, ...], Tensor]]:
    positions = {
        (n, i, j): sum(feature[n, c, i, j].abs() for c in range(C)) / C / tau
        for n in range(N)
        for i in range(H)
        for j in range(W)
    }
    channels = {
        (n, c): sum(v.abs() for v in feature[n, c].flatten()) / (H * W) / tau for n in range(N) for c in range(C)
    }
    return slow_softmax(positions), slow_softmax(channels)


def slow_softmax(energy: dict[tuple[int, ...], Tensor]) -> dict[tuple[int, ...], Tensor]:
    """Of each image, times the number of its entries."""
    totals = [sum(value.exp() for key, value in energy.items() if key[0] == n) for n in range(N)]
    return {key: len(energy) / N * value.exp() / totals[key[0]] for key, value in energy.items()}


def slow_context(block: GlobalContext, feature: Tensor) -> Tensor:
    weights = dict(block.named_parameters())
    columns = []
    for n in range(N):
        score = torch.stack(
            [weights["attend.weight"][0, :, 0, 0] @ feature[n, :, i, j] for i in range(H) for j in range(W)]
        )
        share = score.exp() / score.exp().sum()
        context = sum(share[i * W + j] * feature[n, :, i, j] for i in range(H) for j in range(W))
        hidden = weights["transform.0.weight"][:, :, 0, 0] @ context + weights["transform.0.bias"]
        normal = (hidden - hidden.mean()) / (((hidden - hidden.mean()) ** 2).mean() + 1e-5).sqrt()
        hidden = normal * weights["transform.1.weight"].flatten() + weights["transform.1.bias"].flatten()
        hidden = hidden * (hidden > 0)
        columns.append(weights["transform.3.weight"][:, :, 0, 0] @ hidden + weights["transform.3.bias"])
    return torch.stack(columns)


def slow_fgd(loss: FGD, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    o = loss.options
    foreground, background = slow_masks(BOXES)
    (spatial_s, channel_s), (spatial_t, channel_t) = (slow_attention(f, o.tau) for f in (student, teacher))
    context_s, context_t = (slow_context(loss.relation[k], f) for k, f in (("student", student), ("teacher", teacher)))
    fg = bg = relation = torch.zeros((), dtype=student.dtype)
    for n in range(N):
        for c in range(C):
            for i in range(H):
                for j in range(W):
                    difference = student[n, c, i, j] - teacher[n, c, i, j]
                    error = spatial_t[n, i, j] * channel_t[n, c] * difference**2
                    fg = fg + foreground[n, 0, i, j].item() * error
                    bg = bg + background[n, 0, i, j].item() * error
                    relation = relation + (difference + context_s[n, c] - context_t[n, c]) ** 2
    attention = sum((channel_s[k] - channel_t[k]).abs() for k in channel_s)
    attention = attention + sum((spatial_s[k] - spatial_t[k]).abs() for k in spatial_s)
    values = {"fg": fg, "bg": bg, "attention": attention, "relation": relation}
    return {name: o.weights[name] * value / N for name, value in values.items()}


@DTYPES
@pytest.mark.parametrize("tau", [0.5, 0.8])
def test_every_term_equals_its_formula(dtype: torch.dtype, rtol: float, tau: float) -> None:
    loss, (student, teacher) = build(dtype, tau=tau), pair(dtype)
    fast, slow = loss(student, teacher, CONTEXT), slow_fgd(loss, student, teacher)
    assert list(fast) == list(slow) == list(loss.terms)
    wanted = [student, *loss.parameters()]
    for name, value in fast.items():
        assert_close(value, slow[name], rtol=rtol, atol=0)
        gradients = [torch.autograd.grad(v, wanted, retain_graph=True, allow_unused=True) for v in (value, slow[name])]
        for got, expected in zip(*gradients, strict=True):
            if got is None or expected is None:
                assert got is expected is None
            else:
                assert (got - expected).norm() <= rtol * expected.norm()


def test_masks_equal_their_definition() -> None:
    fast, slow = object_masks(BOXES, STRIDE, (H, W)), slow_masks(BOXES)
    for got, expected in zip(fast, slow, strict=True):
        assert_close(got.double(), expected, rtol=1e-6, atol=0)
    assert_close(object_masks([torch.zeros(0, 4)] * N, STRIDE, (H, W))[1], torch.full((N, 1, H, W), 1 / (H * W)))


@pytest.mark.parametrize("term", ["fg", "bg", "attention", "relation"])
def test_gradcheck_of_each_term(term: str) -> None:
    weights = dict.fromkeys(("fg", "bg", "attention", "relation"), 0.0) | {term: 1.0}
    loss = FGD(2, FGDOptions(**weights)).double()
    for parameter in loss.parameters():
        nn.init.normal_(parameter)
    student, teacher = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64)
    context = LossContext([torch.tensor([[4.0, 4.0, 12.0, 12.0]])], (24, 32), 8)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, context)[term], student.requires_grad_())


def test_the_relation_is_the_error_of_the_features_at_initialization() -> None:
    loss, (student, teacher) = FGD(C, FGDOptions()).double(), pair()
    expected = 5e-6 * (student - teacher).square().sum() / N
    assert_close(loss(student, teacher, CONTEXT)["relation"], expected)


def test_an_equal_student_has_no_loss_at_initialization() -> None:
    _, teacher = pair()
    student = teacher.clone().requires_grad_()
    terms = FGD(C, FGDOptions()).double()(student, teacher, CONTEXT)
    assert all(value == 0 for value in terms.values())
    assert torch.autograd.grad(sum(terms.values()), student)[0].abs().max() == 0


def test_both_relation_blocks_are_trained_and_the_teacher_is_not() -> None:
    levels = [LevelSpec(f"p{i}", C, 2**i) for i in (3, 4)]
    criterion = losses.build("fgd", levels, levels)
    for parameter in criterion.parameters():
        nn.init.normal_(parameter)
    student, teacher = ({"p3": torch.randn(N, C, 8, 8), "p4": torch.randn(N, C, 4, 4)} for _ in range(2))
    for level in (*student.values(), *teacher.values()):
        level.requires_grad_()
    sum(criterion(student, teacher, boxes=BOXES, size=(64, 64)).values()).backward()
    assert all(level.grad is None for level in teacher.values())
    assert all(level.grad.abs().sum() > 0 for level in student.values())
    assert all(parameter.grad.abs().sum() > 0 for parameter in criterion.parameters())


@pytest.mark.parametrize("dropped", ["fg", "bg", "attention", "relation"])
def test_a_term_of_weight_0_is_left_out_and_leaves_the_others(dropped: str) -> None:
    whole, part = build(), build(**{dropped: 0.0})
    if dropped != "relation":
        part.load_state_dict(whole.state_dict())
        assert list(part.parameters())
    else:
        assert not list(part.parameters())
    student, teacher = pair()
    expected = whole(student, teacher, CONTEXT)
    expected.pop(dropped)
    assert part.terms == tuple(expected)
    assert_close(part(student, teacher, CONTEXT), expected)


def test_only_the_sums_over_the_whole_map_grow_with_it() -> None:
    loss, (student, teacher) = FGD(C, FGDOptions()).double(), pair()
    large_student, large_teacher = (f.repeat_interleave(2, 2).repeat_interleave(2, 3) for f in (student, teacher))
    none = LossContext([torch.zeros(0, 4)] * N, (H * 8, W * 8), 8)
    small, large = loss(student, teacher, none), loss(large_student, large_teacher, none)
    assert_close(large["bg"], small["bg"])
    assert_close(large["relation"], 4 * small["relation"])
    assert small["attention"] < large["attention"] < 4 * small["attention"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, r"loss\.tau must be above 0, got 0\.0"),
        ({"bg": -1.0}, r"loss\.bg must be at least 0, got -1\.0"),
        (dict.fromkeys(("fg", "bg", "attention", "relation"), 0.0), r"loss\.fg, .*loss\.relation are all 0"),
        ({"forground": 1.0}, r"loss\.forground: fgd has no such option"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        losses.check_options("fgd", **options)
    assert "\n" not in str(caught.value)
