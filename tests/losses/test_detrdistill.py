"""DETRDistill against literal loops, and what must hold for any predictions."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import QueryPair
from dfmsd.losses.criterion_queries import QueryCriterion
from dfmsd.losses.functional import detrdistill, match_queries
from dfmsd.types import LevelSpec, Queries

LEVELS = [LevelSpec("p3", 8, 8), LevelSpec("p4", 8, 16)]


def predictions(queries: int, images: int = 2, classes: int = 3) -> Queries:
    center, size = torch.rand(2, images, queries, 2, dtype=torch.float64)
    boxes = torch.cat([0.2 + 0.6 * center, 0.1 + 0.3 * size], dim=2)
    return Queries(torch.randn(images, queries, classes, dtype=torch.float64), boxes)


def sigmoid(x: Tensor) -> float:
    return 1 / (1 + math.exp(-float(x)))


def slow_terms(student: Queries, teacher: Queries, image: int, own: int, other: int) -> tuple[float, float, float]:
    """The three weighted terms of one pair, number by number."""
    entropy = 0.0
    for x, t in zip(student.logits[image, own], teacher.logits[image, other], strict=True):
        p, q = sigmoid(t), sigmoid(x)
        entropy -= p * math.log(q) + (1 - p) * math.log(1 - q)
    b, c = student.boxes[image, own].tolist(), teacher.boxes[image, other].tolist()
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (b, c)]
    (x1, y1, x2, y2), (u1, v1, u2, v2) = corners
    both = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - both
    around = (max(x2, u2) - min(x1, u1)) * (max(y2, v2) - min(y1, v1))
    giou = both / union - (around - union) / around
    return entropy, 5 * sum(abs(one - two) for one, two in zip(b, c, strict=True)), 2 * (1 - giou)


def slow_matches(student: Queries, teacher: Queries, image: int) -> list[tuple[int, int]]:
    """The cheapest of all one-to-one matches, by trying every one."""
    queries, others = student.logits.shape[1], teacher.logits.shape[1]
    small, large = sorted((queries, others))
    ways = [
        [(a, b) if queries <= others else (b, a) for a, b in enumerate(way)]
        for way in permutations(range(large), small)
    ]
    return min(ways, key=lambda way: sum(sum(slow_terms(student, teacher, image, *pair)) for pair in way))


@pytest.mark.parametrize(("queries", "others"), [(4, 4), (3, 5), (5, 3), (1, 4)])
def test_terms_equal_a_search_through_all_matches(queries: int, others: int) -> None:
    student, teacher = predictions(queries), predictions(others)
    pairs = [(image, *pair) for image in range(2) for pair in slow_matches(student, teacher, image)]
    found = zip(*(index.tolist() for index in match_queries(student, teacher)), strict=True)
    assert sorted(found) == sorted(pairs)
    wanted = torch.tensor([slow_terms(student, teacher, *pair) for pair in pairs]).double().sum(0) / len(pairs)
    assert_close(torch.stack(detrdistill(student, teacher)), wanted, rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_the_terms_and_reach_the_student_alone() -> None:
    teacher = Queries(*(value.requires_grad_() for value in predictions(4)))
    student = Queries(*(value.requires_grad_() for value in predictions(3)))
    assert torch.autograd.gradcheck(lambda *values: detrdistill(Queries(*values), teacher), tuple(student))
    torch.stack(detrdistill(student, teacher)).sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in student)
    assert all(value.grad is None for value in teacher)


def test_the_order_of_queries_does_not_matter() -> None:
    student, teacher = predictions(6), predictions(4)
    terms = torch.stack(detrdistill(student, teacher))
    one, other = torch.randperm(6), torch.randperm(4)
    mixed = detrdistill(Queries(*(v[:, one] for v in student)), Queries(*(v[:, other] for v in teacher)))
    assert_close(torch.stack(mixed), terms)


def test_boxes_cost_nothing_and_classes_their_entropy_at_equality() -> None:
    teacher = predictions(5)
    order = torch.randperm(5)
    classes, l1, giou = detrdistill(Queries(*(value[:, order] for value in teacher)), teacher)
    assert_close(torch.stack([l1, giou]), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    scores = teacher.logits.sigmoid()
    entropy = -(scores * scores.log() + (1 - scores) * (1 - scores).log()).sum() / 10
    assert_close(classes, entropy)


def test_predictions_that_are_not_finite_give_a_loss_that_is_not() -> None:
    student, teacher = predictions(3), predictions(3)
    student.logits[0, 0] = math.nan
    assert not torch.stack(detrdistill(student, teacher)).isfinite().all()


def test_a_criterion_weights_its_terms_and_has_no_levels() -> None:
    criterion = losses.build("detrdistill", LEVELS, LEVELS, weight=2.0, l1=0.5, giou=0)
    assert isinstance(criterion, QueryCriterion)
    assert (criterion.pairs, criterion.terms, criterion.feature_terms) == ((), ("match_cls", "match_l1"), ())
    assert not list(criterion.parameters())
    pair = QueryPair(predictions(4), predictions(4))
    half = QueryPair(*(Queries(*(value.bfloat16() for value in side)) for side in pair))
    with torch.autocast("cpu", torch.bfloat16):
        named = criterion({}, {}, queries=pair)
        assert {value.dtype for value in criterion({}, {}, queries=half).values()} == {torch.float32}
    classes, l1, _ = detrdistill(*pair)
    assert_close(named, {"match_cls/queries": 2 * classes, "match_l1/queries": l1})


def test_it_goes_together_with_a_loss_on_features() -> None:
    criterion = losses.build([{"name": "pkd"}, {"name": "detrdistill"}], LEVELS, LEVELS)
    features = {level.name: torch.rand(2, level.channels, 4, 4) for level in LEVELS}
    named = criterion(features, features, queries=QueryPair(predictions(4), predictions(4)))
    assert set(named) == {"pkd/p3", "pkd/p4", *(f"match_{name}/queries" for name in ("cls", "l1", "giou"))}
    assert criterion.feature_terms == ("pkd",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1": -1}, "loss.l1 must be at least 0"),
        ({"classes": 0, "l1": 0, "giou": 0}, "are all 0, so nothing is distilled"),
        ({"boxes": 1}, "detrdistill has no such option"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        losses.check_options("detrdistill", **options)


def test_a_call_without_predictions_says_what_is_missing() -> None:
    with pytest.raises(DfmsdError, match="the loss detrdistill needs queries: pass queries= to the criterion"):
        losses.build("detrdistill", LEVELS, LEVELS)({}, {})
