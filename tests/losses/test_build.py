from __future__ import annotations

from dataclasses import fields

import pytest
from torch import nn

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import LOSSES
from dfmsd.types import LevelSpec

LEVELS = (LevelSpec("p3", 2, 8), LevelSpec("p4", 2, 16))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        pytest.param("dfmds", {}, r"loss\.name: unknown loss 'dfmds'; .*\bdfmsd\b", id="unknown loss"),
        pytest.param("dfmsd", {"alhpa": 1.0}, r"loss\.alhpa: .*did you mean alpha\?", id="near option"),
        pytest.param("dfmsd", {"wieght": 1.0}, r"loss\.wieght: .*did you mean weight\?", id="near shared option"),
        pytest.param(
            "dfmsd", {"q": 1.0}, r"loss\.q: dfmsd has no such option; its options are alpha, .*weight", id="far option"
        ),
        pytest.param(
            "dfmsd", {"direction": "up"}, r"loss\.direction must be one of important, .*got 'up'", id="choice"
        ),
        pytest.param(
            "dfmsd",
            {"enhancement": "agreement"},
            r"loss\.enhancement: 'agreement' was removed; choose true or false$",
            id="removed choice",
        ),
        pytest.param(
            "dfmsd",
            {"pairing": "name"},
            r"loss\.pairing must be one of auto, stride, index or a mapping, got 'name'",
            id="pair",
        ),
        pytest.param("dfmsd", {"pairing": {"p3": 2}}, r"loss\.pairing: 2 is not the name of a level", id="level"),
        pytest.param(
            "dfmsd", {"pairing": {"p3": "p3", "p4": "p3"}}, r"loss\.pairing: teacher level p3 occurs twice", id="twice"
        ),
        pytest.param("dfmsd", {"spatial": 1}, r"loss\.spatial must be true or false, got 1", id="bool"),
        pytest.param("dfmsd", {"alpha": "high"}, r"loss\.alpha must be a number, got 'high'", id="number"),
        pytest.param("dfmsd", {"tau": True}, r"loss\.tau must be a number, got True", id="bool as number"),
        pytest.param("dfmsd", {"weight": None}, r"loss\.weight must be a number, got None", id="none"),
        pytest.param("dfmsd", {"ratio": 2.0}, r"loss\.ratio must be in 0\.\.1, got 2\.0", id="out of range"),
        pytest.param("mgd", {"ratio": 1}, r"loss\.ratio must be at least 0 and below 1, got 1", id="all masked by mgd"),
        pytest.param("amd", {"threshold": 0}, r"loss\.threshold must be above 0, got 0", id="all masked by amd"),
        pytest.param(
            "dfmsd",
            {"ratio": 1, "channel": False},
            r"loss\.ratio or loss\.channel_ratio must be below 1: with everything masked",
            id="all masked by dfmsd",
        ),
        pytest.param("dfmsd", {"weight": 0}, r"loss\.weight must be above 0, got 0", id="weight 0"),
        pytest.param("dfmsd", {"weight": -1.0}, r"loss\.weight must be above 0, got -1\.0", id="negative weight"),
    ],
)
def test_invalid_options_are_named_in_one_line(name: str, options: dict[str, object], message: str) -> None:
    for call in (
        lambda: losses.check_options(name, **options),
        lambda: losses.build(name, LEVELS, LEVELS, **options),
    ):
        with pytest.raises(DfmsdError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_every_loss_builds_with_its_defaults(name: str) -> None:
    criterion = losses.build(name, LEVELS, LEVELS)
    assert len(criterion.pairs) == (0 if name == "detrdistill" else 2)
    assert criterion.terms
    assert losses.check_options(name) == {}


def test_options_reach_method_and_criterion() -> None:
    options = {"alpha": 2, "direction": "random", "pairing": "index", "weight": 3, "project": True}
    assert losses.check_options("dfmsd", **options) == options
    criterion = losses.build("dfmsd", LEVELS, (LevelSpec("a", 2, 4), LevelSpec("b", 2, 8)), **options)
    assert criterion.weight == 3
    assert all(isinstance(align.project, nn.Conv2d) for align in criterion.align)
    assert [pair.teacher.stride for pair in criterion.pairs] == [4, 8]
    assert all(method.options.direction == "random" and method.options.alpha == 2 for method in criterion.methods)


def test_pyramids_without_common_levels_are_refused() -> None:
    with pytest.raises(DfmsdError, match=r"share 1 pyramid level\(s\) by object size or stride"):
        losses.build("dfmsd", LEVELS, (LevelSpec("a", 2, 4), LevelSpec("b", 2, 8)))


@pytest.mark.parametrize("name", ["amd", "dfmsd", "dmkd"])
def test_removed_options_may_still_state_the_value_that_is_left(name: str) -> None:
    removed = LOSSES[name].Options.removed
    assert not removed.keys() & {field.name for field in fields(LOSSES[name].Options)}
    for option, value in removed.items():
        assert losses.check_options(name, **{option: value}) == {}
        with pytest.raises(DfmsdError, match=rf"^loss\.{option}: 'other' was removed; leave {option} out"):
            losses.check_options(name, **{option: "other"})


@pytest.mark.parametrize(("former", "present"), [("none", False), ("error+object", True), (False, False)])
def test_names_of_enhancements_may_still_stand_for_true_and_false(former: object, present: bool) -> None:
    assert losses.check_options("dfmsd", enhancement=former) == {"enhancement": present}
    assert losses.resolve_loss({"name": "dfmsd", "enhancement": former})["enhancement"] is present


@pytest.mark.parametrize("former", ["error", "object", "ratio"])
def test_other_enhancements_were_removed(former: str) -> None:
    with pytest.raises(DfmsdError, match=rf"^loss\.enhancement: '{former}' was removed; choose true or false$"):
        losses.check_options("dfmsd", enhancement=former)
