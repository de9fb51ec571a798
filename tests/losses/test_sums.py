from __future__ import annotations

from typing import Any

import torch
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.losses import Criterion, CriterionSum, build
from dfmsd.types import FeaturePyramid, LevelSpec

STUDENT = (LevelSpec("p3", 2, 8), LevelSpec("p4", 2, 16))
TEACHER = (LevelSpec("a", 3, 4), LevelSpec("b", 3, 8), LevelSpec("c", 3, 16))
SIZE = (64, 96)
BOXES = [torch.tensor([[5.0, 5.0, 60.0, 40.0]]), torch.zeros(0, 4)]
SUM: list[dict[str, Any]] = [{"name": "pkd", "weight": 3.0}, {"name": "dmkd", "ratio": 0.25, "pairing": "index"}]


def pyramid(levels: tuple[LevelSpec, ...]) -> FeaturePyramid:
    return {
        level.name: torch.randn(2, level.channels, SIZE[0] // level.stride, SIZE[1] // level.stride).requires_grad_()
        for level in levels
    }


def build_sum(loss: losses.LossConfig = SUM) -> CriterionSum:
    criterion = build(loss, STUDENT, TEACHER)
    assert isinstance(criterion, CriterionSum)
    return criterion


def test_a_sum_has_the_terms_and_the_gradient_of_its_parts_alone() -> None:
    together, student, teacher = build_sum(), pyramid(STUDENT), pyramid(TEACHER)
    terms = together(student, teacher, boxes=BOXES, size=SIZE, stage=2)
    assert list(terms) == ["pkd/p3", "pkd/p4", "mask/p3", "mask/p4"]
    expected: dict[str, torch.Tensor] = {}
    for own, part in zip(SUM, together.criteria, strict=True):
        options = dict(own)
        alone = losses.build(options.pop("name"), STUDENT, TEACHER, **options)
        alone.load_state_dict(part.state_dict())
        expected |= alone(student, teacher, boxes=BOXES, size=SIZE, stage=2)
    assert_close(terms, expected)
    gradients = [torch.autograd.grad(sum(v.values()), list(student.values())) for v in (terms, expected)]
    assert_close(*gradients)


def test_each_part_has_its_own_layers_pairing_and_weight() -> None:
    together = build_sum()
    first, second = together.criteria
    assert (first.weight, second.weight) == (3.0, 1.0)
    assert [pair.teacher.name for pair in together.pairs] == ["b", "c", "a", "b"]
    assert len(together.align) == len(together.methods) == len(together.pairs)
    assert {id(p) for p in first.align.parameters()} & {id(p) for p in second.align.parameters()} == set()
    assert sum(p.numel() for p in together.parameters()) == sum(
        p.numel() for part in (*together.align, *together.methods) for p in part.parameters()
    )
    assert {name.split(".")[1] for name in together.state_dict()} == {"pkd", "dmkd"}


def test_a_sum_lists_the_terms_of_its_parts() -> None:
    together = build_sum()
    assert together.terms == ("pkd", "mask")


def test_correlations_are_those_of_the_first_part_that_has_them() -> None:
    together, student, teacher = build_sum([{"name": "mgd"}, {"name": "cwd"}]), pyramid(STUDENT), pyramid(TEACHER)
    together(student, teacher, boxes=BOXES, size=SIZE)
    first, second = together.criteria
    assert together.diagnostics == first.diagnostics
    assert together.diagnostics["pearson/p3"] != second.diagnostics["pearson/p3"]  # another alignment


def test_a_list_of_one_loss_is_that_loss() -> None:
    for loss in ({"name": "mgd", "ratio": 0.5}, [{"name": "mgd", "ratio": 0.5}]):
        criterion = build(loss, STUDENT, TEACHER)
        assert isinstance(criterion, Criterion)
        assert {method.ratio for method in criterion.methods} == {0.5}
    assert build({}, STUDENT, TEACHER).terms == ("mask", "sfa")


def test_feature_terms_exclude_those_on_predictions() -> None:
    criterion = build_sum([{"name": "pkd"}, {"name": "crosskd"}])
    assert criterion.feature_terms == ("pkd",)
    assert set(criterion.terms) > {"pkd"}
