"""LD at one level equals a literal rendering of its sums."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tests.helpers.literal import TOLERANCE, both
from torch import Tensor
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import LD, HeadLevel, HeadSide, LDOptions, LossContext
from dfmsd.losses.functional import ld
from dfmsd.types import LevelSpec

N, A, K, BINS = 3, 10, 4, 17


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum()


def slow_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Of two rows of logits."""
    q, p = softmax(student / temperature), softmax(teacher / temperature)
    total = torch.zeros((), dtype=student.dtype)
    for b in range(len(p)):
        total = total + p[b] * (p[b].log() - q[b].log())
    return total / len(p) * temperature**2


def slow_sides(student: Tensor, teacher: Tensor) -> Tensor:
    """Summed over the four sides of an anchor."""
    pairs = zip(student.split(BINS), teacher.split(BINS), strict=True)
    return torch.stack([slow_divergence(own, theirs, 10.0) for own, theirs in pairs]).sum()


def never(*_: Tensor) -> tuple[Tensor, Tensor]:
    raise AssertionError("the teacher's head does not read the student's features")


def side(logits: Tensor, box_deltas: Tensor) -> HeadSide:
    nothing = torch.zeros(len(logits), 1, 1, 1)
    return HeadSide((nothing, nothing), logits, box_deltas)


def head_of(student: HeadSide, teacher: HeadSide, objects: Tensor, near: Tensor) -> HeadLevel:
    valid = torch.ones_like(objects)
    return HeadLevel("gfl", student, teacher, never, lambda box_deltas: box_deltas, valid, objects, near, objects.sum())


def terms(head: HeadLevel, **options: object) -> dict[str, Tensor]:
    feature = torch.zeros(N, 1, 2, 2)
    return LD(1, LDOptions(**options))(feature, feature, LossContext([torch.zeros(0, 4)] * N, (40, 40), 8, head=head))  # type: ignore[arg-type]


def values(dtype: torch.dtype = torch.float64) -> tuple[HeadLevel, Tensor, Tensor]:
    """A level with its student's logits and box deltas in float64."""
    logits = (2 * torch.randn(N, A, K).double()).requires_grad_()
    box_deltas = (3 * torch.randn(N, A, 4 * BINS).double()).requires_grad_()
    teacher = side(torch.randn(N, A, K).to(dtype), 3 * torch.randn(N, A, 4 * BINS).to(dtype))
    objects = torch.rand(N, A) > 0.6
    near = torch.rand(N, A) * (torch.rand(N, A) > 0.5)
    return head_of(side(logits.to(dtype), box_deltas.to(dtype)), teacher, objects, near.to(dtype)), logits, box_deltas


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_terms_equal_the_published_sums(dtype: torch.dtype) -> None:
    head, logits, box_deltas = values(dtype)
    teacher = [value.double() for value in (head.teacher.logits, head.teacher.box_deltas)]
    main = valuable = classes = torch.zeros((), dtype=torch.float64)
    for n, a in product(range(N), range(A)):
        sides = slow_sides(box_deltas[n, a], teacher[1][n, a])
        if head.objects[n, a]:
            # the official code divides the sum over sides by 4, and sums over the 2 images of a batch
            main = main + 0.25 * logits[n, a].detach().sigmoid().max() * sides / 4
            classes = classes + 10 * slow_divergence(logits[n, a], teacher[0][n, a], 2.0)
        if head.near[n, a] > 0:
            valuable = valuable + 0.25 * head.near[n, a].double() * sides / 16
    found = terms(head)
    assert list(found) == ["ld_main", "ld_valuable", "ld_cls"]
    both(found["ld_main"], main * 2 / N, box_deltas, dtype)
    both(found["ld_valuable"], valuable * 2 / N, box_deltas, dtype)
    both(found["ld_cls"], classes / head.objects.sum(), logits, dtype)
    # weights have no gradient
    assert torch.autograd.grad(found["ld_main"], logits, allow_unused=True)[0] is None


def test_gradcheck_of_the_divergence() -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 5).double()
    weight = torch.rand(2, 3).double()
    assert torch.autograd.gradcheck(lambda x: ld(x, teacher, weight, 3.0), student)


def test_values_computed_by_hand() -> None:
    """Probabilities 1/2, 1/2 and 1/4, 3/4 at temperature 2."""
    student, teacher = torch.zeros(1, 2), 2 * torch.tensor([[0.25, 0.75]]).log()
    wanted = 4 * (0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()) / 2
    assert_close(ld(student, teacher, torch.ones(1), 2.0), wanted)


def test_an_equal_student_has_no_loss() -> None:
    head, _, _ = values()
    same = head._replace(student=head.teacher)
    assert all(float(value) < 1e-12 for value in terms(same).values())
    assert all(float(value.detach()) > 1e-3 for value in terms(head).values())


def test_the_shift_of_logits_does_not_matter() -> None:
    head, logits, box_deltas = values()
    moved = head._replace(student=side(logits.detach(), box_deltas.detach() + 7))
    assert_close(terms(moved), {name: value.detach() for name, value in terms(head).items()})


def test_the_loss_does_not_grow_with_the_batch() -> None:
    head, _, _ = values()

    def twice(value: Tensor) -> Tensor:
        return torch.cat([value, value]).detach()

    student, teacher = (side(twice(each.logits), twice(each.box_deltas)) for each in (head.student, head.teacher))
    large = head_of(student, teacher, twice(head.objects), twice(head.near))
    assert_close(terms(large), {name: value.detach() for name, value in terms(head).items()})


def test_without_objects_every_term_and_gradient_is_zero() -> None:
    head, logits, box_deltas = values()
    empty = head._replace(objects=torch.zeros_like(head.objects), near=torch.zeros_like(head.near))
    found = terms(empty)
    assert all(float(value.detach()) == 0 for value in found.values())
    for gradient in torch.autograd.grad(torch.stack(list(found.values())).sum(), (logits, box_deltas)):
        assert not gradient.any()


def test_a_factor_of_0_drops_the_term_and_others_scale() -> None:
    head, _, _ = values()
    whole = terms(head)
    assert_close(terms(head, valuable=0, classes=0), {"ld_main": whole["ld_main"]})
    assert_close(terms(head, main=0, valuable=2.0, classes=0), {"ld_valuable": 2 * whole["ld_valuable"]})
    assert LD(1, LDOptions(main=0)).terms == ("ld_valuable", "ld_cls")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"main": -1}, r"loss\.main must be at least 0, got -1"),
        ({"temperature": -1}, r"loss\.temperature must be at least 0, got -1"),
        ({"class_temperature": 0}, r"loss\.class_temperature must be above 0, got 0; the published value is 2"),
        ({"main": 0, "valuable": 0, "classes": 0}, r"all 0, so nothing is distilled"),
        ({"region": 1}, r"region"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        losses.check_options("ld", **options)
    assert "\n" not in str(caught.value)


def test_missing_heads_are_refused() -> None:
    levels = [LevelSpec(f"p{i}", 4, 2**i) for i in (3, 4)]
    pyramid = {"p3": torch.randn(N, 4, 8, 8), "p4": torch.randn(N, 4, 4, 4)}
    criterion = losses.build("ld", levels, levels)
    with pytest.raises(DfmsdError, match="ld compares predictions: pass heads="):
        criterion(pyramid, pyramid, boxes=[torch.zeros(0, 4)] * N, size=(64, 64))
