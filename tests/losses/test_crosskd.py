from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from tests.helpers.literal import TOLERANCE, both
from torch import Tensor
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import CrossKD, CrossKDOptions, HeadLevel, HeadSide, LossContext
from dfmsd.losses.functional import crosskd_cls, crosskd_reg, match_statistics
from dfmsd.types import LevelSpec

N, A, K, C, SIDE = 2, 6, 3, 4, 5


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


# Literal loops over the published formulas.


def slow_classification(logits: Tensor, teacher: Tensor, valid: Tensor, beta: float) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for n, a in product(*map(range, valid.shape)):
        if valid[n, a]:
            for k in range(logits.shape[2]):
                p, t = sigmoid(logits[n, a, k]), sigmoid(teacher[n, a, k])
                total = total - (t * p.log() + (1 - t) * (1 - p).log()) * (p - t).abs() ** beta
    return total


def slow_regression(boxes: Tensor, teacher: Tensor, weight: Tensor, generalized: bool) -> Tensor:
    total = torch.zeros((), dtype=boxes.dtype)
    for n, a in product(*map(range, weight.shape)):
        b, t = boxes[n, a], teacher[n, a]
        sides = [torch.min(b[i + 2], t[i + 2]) - torch.max(b[i], t[i]) for i in (0, 1)]
        common = sides[0] * sides[1] if min(sides) > 0 else 0 * b[0]
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (b, t)]
        union = areas[0] + areas[1] - common
        if generalized:
            hull = (torch.max(b[2], t[2]) - torch.min(b[0], t[0])) * (torch.max(b[3], t[3]) - torch.min(b[1], t[1]))
            total = total + weight[n, a] * (1 - (common / union - (hull - union) / hull))
        else:
            total = total - weight[n, a] * (common / union).log()
    return total


def slow_rescaling(student: Tensor, teacher: Tensor, eps: float) -> Tensor:
    rows = []
    for c in range(student.shape[1]):
        mine, theirs = student[:, c], teacher[:, c]
        z = (mine - mine.mean()) / (mine.std() + eps)
        rows.append(z * theirs.std() + theirs.mean())
    return torch.stack(rows, dim=1)


def boxes_near(center: Tensor) -> Tensor:
    """Boxes of 4 to 12 pixels around points that are at most 2 pixels from ``center``."""
    points = center + 2 * torch.rand_like(center)
    return torch.cat([points - 2 - 4 * torch.rand_like(points), points + 2 + 4 * torch.rand_like(points)], dim=-1)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_classification_equals_the_literal_formula(beta: float, dtype: torch.dtype) -> None:
    source = (2 * torch.randn(N, A, K)).double().requires_grad_()
    teacher = (2 * torch.randn(N, A, K)).double()
    valid = torch.rand(N, A) > 0.3
    fast = crosskd_cls(source.to(dtype), teacher.to(dtype), valid, beta)
    assert fast.dtype == dtype
    both(fast, slow_classification(source, teacher, valid, beta), source, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("generalized", [True, False])
def test_regression_equals_the_literal_formula(generalized: bool, dtype: torch.dtype) -> None:
    center = 50 * torch.rand(N, A, 2)
    source, teacher = (boxes_near(center).double() for _ in range(2))
    source.requires_grad_()
    weight = torch.rand(N, A).double()
    fast = crosskd_reg(source.to(dtype), teacher.to(dtype), weight.to(dtype), generalized=generalized)
    both(fast, slow_regression(source, teacher, weight, generalized), source, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_rescaling_equals_the_literal_formula(dtype: torch.dtype) -> None:
    source = torch.randn(N, C, SIDE, SIDE).double().requires_grad_()
    teacher, upstream = 3 * torch.randn(2, N, C, SIDE, SIDE).double() + 1
    fast = match_statistics(source.to(dtype), teacher.to(dtype), 1e-3)
    both((fast * upstream.to(dtype)).sum(), (slow_rescaling(source, teacher, 1e-3) * upstream).sum(), source, dtype)
    assert_close(fast.mean((0, 2, 3)), teacher.mean((0, 2, 3)).to(dtype))


def test_gradcheck_of_the_classification() -> None:
    logits = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    teacher, valid = torch.randn(1, 3, 2, dtype=torch.float64), torch.tensor([[True, False, True]])
    for beta in (1.0, 1.5):
        assert torch.autograd.gradcheck(lambda x, b=beta: crosskd_cls(x, teacher, valid, b), logits)


def test_values_computed_by_hand() -> None:
    logits, teacher = torch.zeros(1, 1, 1), torch.full((1, 1, 1), math.log(3))  # probabilities 1/2 and 3/4
    assert_close(crosskd_cls(logits, teacher, torch.ones(1, 1, dtype=torch.bool)), torch.tensor(math.log(2) / 4))
    boxes, target = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[2.0, 0.0, 6.0, 4.0]])  # IoU 8/24, hull 24
    weight = torch.tensor([0.5])
    assert_close(crosskd_reg(boxes, target, weight, generalized=True), torch.tensor(1 / 3))
    assert_close(crosskd_reg(boxes, target, weight, generalized=False), torch.tensor(math.log(3) / 2))


def test_boxes_apart_and_boxes_without_area_stay_finite() -> None:
    target = torch.tensor([[10.0, 10.0, 20.0, 20.0], [5.0, 5.0, 5.0, 5.0]])
    for generalized, error in ((True, 1 + 300 / 400), (False, -math.log(1e-6))):
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 5.0, 0.0]]).requires_grad_()
        far = crosskd_reg(boxes, target, torch.ones(2), generalized=generalized)
        hull = 20 * 20
        assert_close(far, torch.tensor(1 + (hull - 200) / hull if generalized else error))
        (gradient,) = torch.autograd.grad(far, boxes)
        assert gradient.isfinite().all()
        assert not gradient[1].any()  # the teacher has no box there


# The module, on a head that is a matrix.


def matrix_head(arch: str, positives: float = 4.0, student: Tensor | None = None) -> tuple[HeadLevel, Tensor]:
    """A level of ``SIDE * SIDE`` anchors with ``K`` classes; gives the student's feature too."""
    torch.manual_seed(0)
    teacher = torch.rand(N, C, SIDE, SIDE, dtype=torch.float64)
    weights = torch.randn(K, C, dtype=torch.float64), torch.rand(4, C, dtype=torch.float64)

    def predict(classification: Tensor, regression: Tensor) -> tuple[Tensor, Tensor]:
        logits, box_deltas = (
            torch.einsum("kc,nchw->nhwk", weight, value.relu()).flatten(1, 2)
            for weight, value in zip(weights, (classification, regression), strict=True)
        )
        return logits, box_deltas

    def decode(box_deltas: Tensor) -> Tensor:
        return torch.cat([10 - box_deltas[..., :2], 12 + box_deltas[..., 2:]], dim=-1)

    valid = torch.rand(N, SIDE * SIDE) > 0.2
    student = torch.randn_like(teacher) if student is None else student
    student.requires_grad_()
    sides = [HeadSide((tower, tower), *predict(tower, tower)) for tower in (student, teacher)]
    nothing = torch.zeros(valid.shape)
    head = HeadLevel(arch, *sides, predict, decode, valid, nothing.bool(), nothing, torch.tensor(positives))
    return head, student


def terms(head: HeadLevel, **options: object) -> dict[str, Tensor]:
    context = LossContext([torch.zeros(0, 4)] * N, (40, 40), 8, head=head)
    feature = torch.zeros(N, C, SIDE, SIDE)
    return CrossKD(C, CrossKDOptions(**options))(feature, feature, context)


@pytest.mark.parametrize(("arch", "cls", "reg"), [("retinanet", 1.0, 1.0), ("fcos", 0.4, 0.75)])
def test_the_terms_equal_the_published_sums(arch: str, cls: float, reg: float) -> None:
    head, student = matrix_head(arch)
    found = terms(head)
    cross = slow_rescaling(student, head.teacher.towers[0], 1e-3)
    logits, box_deltas = head.predict(cross, cross)
    weight = sigmoid(head.teacher.logits).amax(2) * head.valid
    slow_cls = cls / 4 * slow_classification(logits, head.teacher.logits, head.valid, 1.0)
    boxes, wanted = head.decode(box_deltas), head.decode(head.teacher.box_deltas)
    slow_reg = reg / 4 * slow_regression(boxes, wanted, weight, generalized=arch == "retinanet")
    assert list(found) == ["cross_cls", "cross_reg"]
    both(found["cross_cls"], slow_cls, student, torch.float64)
    both(found["cross_reg"], slow_reg, student, torch.float64)


@pytest.mark.parametrize("arch", ["retinanet", "fcos"])
def test_equal_features_have_no_loss(arch: str) -> None:
    head, _ = matrix_head(arch)
    same, copied = matrix_head(arch, student=head.teacher.towers[0].clone())
    found = terms(same, eps=1e-12, beta=2.0)  # with beta 1 the minimum is a kink
    assert all(float(value.detach()) < 1e-9 for value in (*found.values(), *terms(same, eps=1e-12).values()))
    (gradient,) = torch.autograd.grad(found["cross_cls"], copied)
    assert gradient.abs().max() < 1e-9
    assert all(float(value.detach()) > 1e-3 for value in terms(head).values())


def test_scale_and_shift_of_the_students_channels_do_not_matter() -> None:
    head, student = matrix_head("fcos")
    factor = torch.tensor([0.5, 2.0, 3.0, 10.0], dtype=torch.float64).view(1, C, 1, 1)
    moved, _ = matrix_head("fcos", student=(student.detach() * factor - 7))
    assert_close(terms(moved, eps=1e-12), terms(head, eps=1e-12))


def test_a_batch_without_objects_divides_by_one() -> None:
    none, one = (terms(matrix_head("fcos", positives=value)[0]) for value in (0.0, 1.0))
    assert_close(none, one, rtol=0, atol=0)


def test_anchors_that_are_neither_object_nor_background_are_left_out() -> None:
    head, _ = matrix_head("retinanet")
    nothing = head._replace(valid=torch.zeros_like(head.valid))
    assert all(float(value.detach()) == 0 for value in terms(nothing).values())


def test_a_factor_of_0_drops_the_term() -> None:
    head, _ = matrix_head("retinanet")
    whole = terms(head)
    assert_close(terms(head, regression=0), {"cross_cls": whole["cross_cls"]})
    assert_close(terms(head, classification=0, regression=2), {"cross_reg": 2 * whole["cross_reg"]})


# How many convolutions are the teacher's.


@pytest.mark.parametrize(
    ("arch", "convs", "reused"),
    [("fcos", 4, 2), ("fcos", 2, 1), ("fcos", 1, 0), ("retinanet", 4, 1), ("retinanet", 1, 0)],
)
def test_the_published_cut_counts_from_the_end(arch: str, convs: int, reused: int) -> None:
    assert CrossKD(C, CrossKDOptions()).reused(arch, convs) == reused


def test_a_cut_can_be_chosen_where_the_tower_is_long_enough() -> None:
    assert CrossKD(C, CrossKDOptions(reused=3)).reused("fcos", 4) == 3
    with pytest.raises(DfmsdError, match=r"loss\.reused must be below the 3 convolutions .*, got 3; set at most 2"):
        CrossKD(C, CrossKDOptions(reused=3)).reused("fcos", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reused": -1}, r"loss\.reused must be at least 0, got -1"),
        ({"reused": 1.5}, r"loss\.reused must be an integer or null, got 1\.5"),
        ({"beta": 0.5}, r"loss\.beta"),
        ({"eps": 0}, r"loss\.eps"),
        ({"classification": -1}, r"loss\.classification must be at least 0, got -1"),
        ({"classification": 0, "regression": 0}, r"both 0, so nothing is distilled"),
        ({"regression": "x"}, r"loss\.regression must be a number, got 'x'"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        losses.check_options("crosskd", **options)
    assert "\n" not in str(caught.value)


def test_missing_heads_are_refused() -> None:
    levels = [LevelSpec(f"p{i}", C, 2**i) for i in (3, 4)]
    pyramid = {"p3": torch.randn(N, C, 8, 8), "p4": torch.randn(N, C, 4, 4)}
    criterion = losses.build("crosskd", levels, levels)
    with pytest.raises(DfmsdError, match="crosskd compares predictions: pass heads="):
        criterion(pyramid, pyramid, boxes=[torch.zeros(0, 4)] * N, size=(64, 64))
