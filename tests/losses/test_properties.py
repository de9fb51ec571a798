"""Properties that hold for features and predictions of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from dfmsd.losses import LOSSES, LossContext, Method, functional
from dfmsd.losses.functional import Attention, feature_attention, object_masks
from dfmsd.losses.method import HeadLevel, HeadMethod, HeadSide, PredictionMethod

FEW = settings(max_examples=25, deadline=None)
STRIDE = 8
ON_FEATURES = sorted(name for name, method in LOSSES.items() if not issubclass(method, PredictionMethod))
DETERMINISTIC = {"mgd": {"ratio": 0.0}}
"""Options without which a loss draws random masks."""

sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
each_loss = pytest.mark.parametrize("name", ON_FEATURES)


def features(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Draw a student, with gradient, and a teacher."""
    return torch.randn(size, dtype=torch.float64).requires_grad_(), 2 * torch.randn(size, dtype=torch.float64) + 0.3


def context_of(size: tuple[int, ...], stage: int = 1) -> LossContext:
    """Draw up to two boxes in every image."""
    height, width = size[2] * STRIDE, size[3] * STRIDE
    boxes = []
    for image in range(size[0]):
        corners = torch.rand(image % 3, 2, 2, dtype=torch.float64) * torch.tensor([width, height])
        boxes.append(torch.cat([corners.amin(1), corners.amax(1)], dim=1))
    return LossContext(boxes, (height, width), STRIDE, stage)


def build(name: str, channels: int) -> Method:
    return LOSSES[name](channels, LOSSES[name].Options(**DETERMINISTIC.get(name, {}))).double()


@each_loss
@FEW
@given(size=sizes, stage=st.integers(1, 3), constant=st.sampled_from(["", "student", "teacher", "both"]))
def test_terms_are_finite_scalars_with_finite_gradients(
    name: str, size: tuple[int, int, int, int], stage: int, constant: str
) -> None:
    loss, (student, teacher) = build(name, size[1]), features(size)
    if constant in ("student", "both"):
        student = student.detach() * 0 + 0.7
        student.requires_grad_()
    if constant in ("teacher", "both"):
        teacher = teacher * 0 - 3
    terms = loss(student, teacher, context_of(size, stage))
    assert tuple(terms) == loss.terms
    for value in terms.values():
        assert value.shape == ()
        assert value >= 0
        assert torch.isfinite(value)
    gradients = torch.autograd.grad(sum(terms.values()), [student, *loss.parameters()], allow_unused=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
    assert gradients[0] is not None
    assert gradients[0].shape == student.shape


@each_loss
@FEW
@given(size=sizes, stage=st.integers(1, 2))
def test_the_order_of_the_images_does_not_matter(name: str, size: tuple[int, int, int, int], stage: int) -> None:
    loss, (student, teacher), context = build(name, size[1]), features(size), context_of(size, stage)
    assert context.boxes is not None
    order = torch.randperm(size[0]).tolist()
    shuffled = context._replace(boxes=[context.boxes[index] for index in order])
    assert_close(loss(student[order], teacher[order], shuffled), loss(student, teacher, context))


@pytest.mark.parametrize("name", ["fgd", "fitnet", "pkd", "cwd"])
@FEW
@given(size=sizes)
def test_an_equal_student_has_no_loss_and_no_gradient(name: str, size: tuple[int, int, int, int]) -> None:
    _, teacher = features(size)
    student = teacher.clone().requires_grad_()
    terms = build(name, size[1])(student, teacher, context_of(size))
    (gradient,) = torch.autograd.grad(sum(terms.values()), student)
    assert all(abs(value) < 1e-12 for value in terms.values())
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["fitnet", "pkd", "cwd"])
@FEW
@given(size=sizes)
def test_the_order_of_positions_and_channels_does_not_matter(name: str, size: tuple[int, int, int, int]) -> None:
    (student, teacher), loss = features(size), getattr(functional, name)
    positions, channels = torch.randperm(size[2] * size[3]), torch.randperm(size[1])
    shuffled = [f.flatten(2)[:, channels][..., positions].view(size) for f in (student, teacher)]
    assert_close(loss(*shuffled), loss(student, teacher))


affine = {"scale": st.floats(0.1, 10), "shift": st.floats(-10, 10)}


@FEW
@given(size=sizes, **affine)
def test_pkd_ignores_scale_and_shift_of_a_channel(size: tuple[int, int, int, int], scale: float, shift: float) -> None:
    student, teacher = features(size)
    expected, factors = functional.pkd(student, teacher, 1e-12), scale * (1 + torch.rand(1, size[1], 1, 1))
    assert_close(functional.pkd(student, factors * teacher + shift, 1e-12), expected)
    assert_close(functional.pkd(factors * student + shift, teacher, 1e-12), expected)
    assert_close(functional.dfmsd_alignment(student, factors * teacher + shift, 1e-12), expected)


@FEW
@given(size=sizes, **affine)
def test_cwd_ignores_a_shift_of_a_channel_but_not_its_scale(
    size: tuple[int, int, int, int], scale: float, shift: float
) -> None:
    student, teacher = features(size)
    shifts, expected = shift * torch.rand(1, size[1], 1, 1, dtype=torch.float64), functional.cwd(student, teacher)
    assert_close(functional.cwd(student + shifts, teacher - shifts), expected)
    if size[2] * size[3] > 1 and abs(scale - 1) > 0.1:
        assert not torch.isclose(functional.cwd(scale * student, teacher), expected)


@FEW
@given(size=sizes, **affine)
def test_fitnet_grows_with_the_square_of_the_scale(size: tuple[int, int, int, int], scale: float, shift: float) -> None:
    student, teacher = features(size)
    moved = functional.fitnet(scale * student + shift, scale * teacher + shift)
    assert_close(moved, scale**2 * functional.fitnet(student, teacher))


@FEW
@given(size=sizes)
def test_without_masks_generation_losses_are_the_error_of_the_generation(size: tuple[int, int, int, int]) -> None:
    student, teacher = features(size)
    ones, none = torch.ones(size[0], 1, *size[2:]).double(), torch.zeros(size[0], 1, *size[2:]).double()
    assert_close(
        functional.mgd(student, teacher, ones, torch.tanh), (student.tanh() - teacher).square().sum() / size[0]
    )
    assert_close(functional.amd(student, teacher, none, torch.tanh), teacher.square().sum() / size[0])
    both = functional.dfmsd_mask(student, teacher, [ones, none], [torch.tanh] * 2, torch.tensor(1.0).double())
    assert_close(both, functional.dfmsd_mask(student, teacher, [ones], [torch.tanh]))
    assert_close(both, functional.fitnet(student.tanh(), teacher))


@FEW
@given(size=sizes, tau=st.floats(0.3, 3))
def test_fgds_terms_do_not_depend_on_the_sign_of_the_features(size: tuple[int, int, int, int], tau: float) -> None:
    (student, teacher), context = features(size), context_of(size)
    masks = object_masks(context.boxes or [], STRIDE, (size[2], size[3]), torch.float64)
    values = []
    for sign in (1, -1):
        attention = feature_attention(sign * teacher, tau)
        focal = functional.fgd_focal(sign * student, sign * teacher, attention, *masks)
        values.append([*focal, functional.fgd_attention(feature_attention(sign * student, tau), attention)])
    assert_close(values[0], values[1])
    even = Attention(torch.ones_like(teacher[:, :1]), torch.ones_like(teacher[:, :, :1, :1]))
    (error,) = functional.fgd_focal(student, teacher, even, torch.ones_like(teacher[:, :1]))
    assert_close(error, (student - teacher).square().sum() / size[0])


# Predictions.

anchors = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5))


def boxes_like(size: tuple[int, int]) -> Tensor:
    corners = 20 * torch.rand(*size, 2, dtype=torch.float64)
    return torch.cat([corners, corners + 1 + 20 * torch.rand_like(corners)], dim=-1)


@FEW
@given(size=anchors, beta=st.sampled_from([1.0, 1.5, 2.0]))
def test_crosskds_classification_is_zero_at_equality_only(size: tuple[int, int, int], beta: float) -> None:
    logits, teacher = torch.randn(2, *size, dtype=torch.float64)
    valid = torch.ones(size[:2], dtype=torch.bool)
    assert functional.crosskd_cls(teacher, teacher, valid, beta) == 0
    assert functional.crosskd_cls(logits, teacher, valid, beta) > 0
    assert functional.crosskd_cls(logits, teacher, ~valid, beta) == 0
    flipped = functional.crosskd_cls(-logits, -teacher, valid, beta)  # exchanges the two outcomes of every class
    assert_close(flipped, functional.crosskd_cls(logits, teacher, valid, beta))


@pytest.mark.parametrize("generalized", [True, False])
@FEW
@given(size=anchors, shift=st.floats(-100, 100), scale=st.floats(0.5, 50))
def test_crosskds_regression_ignores_where_boxes_lie_and_how_large_they_are(
    size: tuple[int, int, int], shift: float, scale: float, generalized: bool
) -> None:
    boxes, teacher = boxes_like(size[:2]), boxes_like(size[:2])
    weight = torch.rand(size[:2], dtype=torch.float64)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return functional.crosskd_reg(student, teacher, weight, generalized=generalized)

    assert_close(loss(teacher, teacher), weight.sum() * 0, atol=1e-9, rtol=0)
    assert loss(boxes, teacher) >= 0
    assert_close(loss(scale * boxes + shift, scale * teacher + shift), loss(boxes, teacher), rtol=1e-6, atol=1e-6)


@FEW
@given(size=anchors, temperature=st.floats(0.5, 20), shift=st.floats(-10, 10))
def test_ld_ignores_a_shift_of_the_logits(size: tuple[int, int, int], temperature: float, shift: float) -> None:
    student, teacher = torch.randn(2, *size, dtype=torch.float64)
    weight = torch.rand(size[:2], dtype=torch.float64)
    expected = functional.ld(student, teacher, weight, temperature)
    assert expected >= -1e-12
    assert_close(functional.ld(student + shift, teacher - shift, weight, temperature), expected)
    assert_close(functional.ld(2 * student, 2 * teacher, weight, 2 * temperature), 4 * expected)
    assert abs(functional.ld(teacher, teacher, weight, temperature)) < 1e-12


@FEW
@given(size=sizes)
def test_matched_statistics_are_the_teachers(size: tuple[int, int, int, int]) -> None:
    student, teacher = features(size)
    matched = functional.match_statistics(student, teacher, eps=1e-12)
    got, expected = functional.channel_statistics(matched), functional.channel_statistics(teacher)
    if size[0] * size[2] * size[3] > 1:
        assert_close(got, expected)
    assert torch.isfinite(matched).all()


def head_level(name: str, size: tuple[int, int, int], student: HeadSide, teacher: HeadSide) -> HeadLevel:
    """Build a level whose anchors are all positive, and whose teacher's head predicts what the student does."""
    positive = torch.ones(size[:2], dtype=torch.bool)
    arch = "gfl" if name == "ld" else "fcos"

    def predict(*_: Tensor) -> tuple[Tensor, Tensor]:
        return student.logits, student.box_deltas

    def decode(box_deltas: Tensor) -> Tensor:
        return box_deltas

    near = positive.double()
    return HeadLevel(arch, student, teacher, predict, decode, positive, positive, near, positive.sum().double())


@pytest.mark.parametrize("name", sorted(name for name, method in LOSSES.items() if issubclass(method, HeadMethod)))
@FEW
@given(size=anchors)
def test_losses_on_predictions_are_finite_and_zero_at_equality(name: str, size: tuple[int, int, int]) -> None:
    towers = (torch.randn(2, 3, 4, 4, dtype=torch.float64),) * 2
    deltas: Callable[[], Tensor] = (
        (lambda: torch.randn(*size[:2], 4 * 17, dtype=torch.float64)) if name == "ld" else lambda: boxes_like(size[:2])
    )
    student, teacher = (HeadSide(towers, torch.randn(size, dtype=torch.float64), deltas()) for _ in range(2))
    wanted = [student.logits.requires_grad_(), student.box_deltas.requires_grad_()]
    loss: Any = build(name, 1)
    terms = loss(towers[0], towers[0], LossContext(None, None, STRIDE, 1, head_level(name, size, student, teacher)))
    assert tuple(terms) == tuple(term for term in loss.terms if term != "ld_cls" or size[2] > 1)
    assert all(value.shape == () and value >= 0 for value in terms.values())
    gradients = torch.autograd.grad(sum(terms.values()), wanted, allow_unused=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
    equal = loss.compare(head_level(name, size, student, HeadSide(towers, *(value.detach() for value in wanted))))
    assert all(abs(value) < 1e-9 for value in equal.values())
