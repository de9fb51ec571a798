from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import (
    LOSSES,
    Criterion,
    FitNet,
    build,
    check_loss,
    check_options,
    head_methods,
    replace_loss,
    resolve_loss,
)
from dfmsd.types import LevelSpec

STUDENT = (LevelSpec("p3", 2, 8), LevelSpec("p4", 2, 16))
TEACHER = (LevelSpec("a", 3, 4), LevelSpec("b", 3, 8), LevelSpec("c", 3, 16))
SIZE = (64, 96)
BOXES = [torch.tensor([[5.0, 5.0, 60.0, 40.0]]), torch.zeros(0, 4)]
SUM: list[dict[str, Any]] = [{"name": "pkd", "weight": 3.0}, {"name": "dmkd", "ratio": 0.25, "pairing": "index"}]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ([], r"loss: the list is empty; add at least one"),
        ([{"name": "pkd"}, {"name": "pkd", "weight": 2.0}], r"loss: pkd is listed twice"),
        ([{"name": "dmkd"}, {}], r"loss: dmkd and dfmsd both have a term 'mask'"),
        ([{"name": "pkd"}, {"name": "mgt"}], r"loss\.name: unknown loss 'mgt'"),
        ([{"name": "pkd"}, {"name": "mgd", "ratio": 2.0}], r"loss\.ratio must be at least 0 and below 1, got 2\.0"),
        ([{"name": "pkd"}, {"name": "mgd", "alpha": 2.0}], r"loss\.alpha: mgd has no such option"),
    ],
)
def test_invalid_sums_are_refused(loss: losses.LossConfig, message: str) -> None:
    for call in (check_loss, lambda loss: build(loss, STUDENT, TEACHER)):
        with pytest.raises(DfmsdError, match=message) as caught:
            call(loss)
        assert "\n" not in str(caught.value)


def test_terms_that_an_option_drops_do_not_clash() -> None:
    check_loss([{"name": "dmkd"}, {"name": "dfmsd", "alpha": 0.0}])


def test_registered_methods_with_a_term_of_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_loss_of_a_stage(run: losses.LossConfig, own: losses.LossConfig, found: losses.LossConfig) -> None:
    assert replace_loss(run, own) == found


def test_options_without_a_name_are_refused_for_a_list() -> None:
    with pytest.raises(DfmsdError, match=r"loss\.name: missing; the loss of a stage replaces a list of losses"):
        replace_loss(SUM, {"weight": 2.0})


def test_a_name_alone_is_a_loss() -> None:
    assert isinstance(build("pkd", STUDENT, TEACHER), Criterion)
    assert resolve_loss("pkd") == resolve_loss({"name": "pkd"})
    assert replace_loss("pkd", {"weight": 2.0}) == {"name": "pkd", "weight": 2.0}
    assert replace_loss({"name": "pkd", "weight": 2.0}, "mgd") == {"name": "mgd"}
    assert head_methods("ld") == ["ld"]
    check_loss("dfmsd")


def test_options_are_converted_to_their_types() -> None:
    options = check_options("crosskd", reused=np.int64(1), beta=np.float32(2), weight=3)
    assert [type(value) for value in options.values()] == [int, float, float]
    criterion = build({"name": "pkd", "eps": np.float64(0.5)}, STUDENT, TEACHER, weight=2)
    assert (criterion.weight, criterion.methods[0].eps) == (2.0, 0.5)
    with pytest.raises(DfmsdError, match="loss: weight could belong to any loss of the list"):
        build(SUM, STUDENT, TEACHER, weight=2.0)


def test_every_default_is_resolved_and_a_given_option_kept() -> None:
    resolved = resolve_loss([{"name": "mgd", "ratio": 0.25}, {"name": "pkd", "pairing": "index"}])
    shared = {"pairing": "auto", "project": False, "resize": "student"}
    assert resolved == [
        {"name": "mgd", **shared, "weight": 2e-5, "ratio": 0.25},
        {"name": "pkd", **shared, "pairing": "index", "weight": 10.0, "eps": 1e-3},
    ]
    pairs = {"name": "fitnet", "pairing": {"p3": "p2", "p4": "p3"}}
    assert resolve_loss(pairs) == {**shared, **pairs, "weight": 1.0}
    assert resolve_loss(resolve_loss(pairs)) == resolve_loss(pairs)
