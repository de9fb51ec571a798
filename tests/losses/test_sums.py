from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import LOSSES, Criterion, CriterionSum, FitNet, build, check_loss, replace_loss
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


def test_interface_of_the_parts() -> None:
    together = build_sum()
    assert together.terms == ("pkd", "mask")


def test_correlations_are_those_of_the_first_part_that_has_them() -> None:
    together, student, teacher = build_sum([{"name": "mgd"}, {"name": "cwd"}]), pyramid(STUDENT), pyramid(TEACHER)
    together(student, teacher, boxes=BOXES, size=SIZE)
    first, second = together.criteria
    assert together.diagnostics == first.diagnostics
    assert together.diagnostics["pearson/p3"] != second.diagnostics["pearson/p3"]  # another alignment


def test_one_in_a_list_is_that_one_alone() -> None:
    for loss in ({"name": "mgd", "ratio": 0.5}, [{"name": "mgd", "ratio": 0.5}]):
        criterion = build(loss, STUDENT, TEACHER)
        assert isinstance(criterion, Criterion)
        assert {method.ratio for method in criterion.methods} == {0.5}
    assert build({}, STUDENT, TEACHER).terms == ("mask", "sfa")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ([], r"loss: the list is empty; add at least one"),
        ([{"name": "pkd"}, {"name": "pkd", "weight": 2.0}], r"loss: pkd is listed twice"),
        ([{"name": "dmkd"}, {}], r"loss: dmkd and dfmsd both have a term 'mask'"),
        ([{"name": "pkd"}, {"name": "mgt"}], r"loss\.name: unknown loss 'mgt'"),
        ([{"name": "pkd"}, {"name": "mgd", "ratio": 2.0}], r"loss\.ratio must be in 0\.\.1, got 2\.0"),
        ([{"name": "pkd"}, {"name": "mgd", "alpha": 2.0}], r"loss\.alpha: mgd has no such option"),
    ],
)
def test_sums_that_mean_nothing_are_refused(loss: losses.LossConfig, message: str) -> None:
    for call in (check_loss, lambda loss: build(loss, STUDENT, TEACHER)):
        with pytest.raises(DfmsdError, match=message) as caught:
            call(loss)
        assert "\n" not in str(caught.value)


def test_terms_that_a_switch_drops_do_not_clash() -> None:
    check_loss([{"name": "dmkd"}, {"name": "dfmsd", "alpha": 0.0}])


def test_two_methods_of_ones_own_with_one_term_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "mine", FitNet)
    with pytest.raises(DfmsdError, match="loss: fitnet and mine both have a term 'fitnet'; leave out one of them"):
        check_loss([{"name": "fitnet"}, {"name": "mine"}])


def test_checking_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    check_loss([{"name": name} for name in ("fgd", "mgd", "dfmsd", "amd")])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("run", "own", "found"),
    [
        ({"name": "dfmsd", "alpha": 2.0}, {}, {"name": "dfmsd", "alpha": 2.0}),
        ({"name": "dfmsd", "alpha": 2.0}, {"beta": 0.0}, {"name": "dfmsd", "alpha": 2.0, "beta": 0.0}),
        ({"name": "dfmsd", "alpha": 2.0}, {"name": "pkd"}, {"name": "pkd"}),
        ({"alpha": 2.0}, {"name": "dfmsd", "beta": 0.0}, {"alpha": 2.0, "name": "dfmsd", "beta": 0.0}),
        ({"name": "dfmsd", "alpha": 2.0}, SUM, SUM),
        (SUM, {}, SUM),
        (SUM, {"name": "pkd"}, {"name": "pkd"}),
        (SUM, [{"name": "cwd"}], [{"name": "cwd"}]),
        (SUM, [], []),
    ],
)
def test_a_stages_own_loss(run: losses.LossConfig, own: losses.LossConfig, found: losses.LossConfig) -> None:
    assert replace_loss(run, own) == found


def test_options_alone_do_not_tell_which_of_several_losses_they_change() -> None:
    with pytest.raises(DfmsdError, match=r"loss\.name: missing; the loss of a stage replaces a list of losses"):
        replace_loss(SUM, {"weight": 2.0})


def test_terms_on_predictions_are_none_on_features() -> None:
    criterion = build_sum([{"name": "pkd"}, {"name": "crosskd"}])
    assert criterion.feature_terms == ("pkd",)
    assert set(criterion.terms) > {"pkd"}
