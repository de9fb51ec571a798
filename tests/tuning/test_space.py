from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dfmsd.engine.config import DistillConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.errors import DfmsdError
from dfmsd.tuning.config import TuneConfig
from dfmsd.tuning.space import build_space, first_values, with_values

MakeTune = Callable[..., TuneConfig]


@pytest.fixture
def trial(tune_config: MakeTune, tmp_path: Path) -> DistillConfig:
    return tune_config(tmp_path).as_trial()


def test_default_space_surrounds_the_config(trial: DistillConfig) -> None:
    space = build_space(trial, {}, ["config", "T1"])
    assert {key: parameter.distribution for key, parameter in space.items()} == {
        "plan": CategoricalDistribution(["config", "T1"]),
        "basis": CategoricalDistribution(["auto", "own"]),
        "loss.pairing": CategoricalDistribution(["auto", "stride"]),
        "loss.alpha": FloatDistribution(0.0, 3.0),
        "balance": FloatDistribution(0.5, 8.0, log=True),
        "inherit": CategoricalDistribution([False, "auto"]),
        "optim.lr": FloatDistribution(1e-2 / 3, 1e-2 * 3, log=True),
    }
    assert first_values(space, trial) == {
        "plan": "config",
        "basis": "auto",
        "loss.pairing": "auto",
        "loss.alpha": 1.0,
        "balance": 2.0,
        "inherit": False,
        "optim.lr": 1e-2,
    }


def test_default_space_leaves_out_what_the_config_does_not_have(tune_config: MakeTune, tmp_path: Path) -> None:
    losses = [{"name": "pkd"}, {"name": "cwd"}]
    space = build_space(tune_config(tmp_path, loss=losses, balance=None).as_trial(), {}, ["config", "T1"])
    assert list(space) == ["plan", "basis", "inherit", "optim.lr"]
    space = build_space(tune_config(tmp_path, loss="pkd", balance=None).as_trial(), {}, ["config"])
    assert list(space) == ["plan", "loss.pairing", "loss.weight", "inherit", "optim.lr"]


def test_basis_is_a_parameter_only_where_a_plan_has_it(trial: DistillConfig) -> None:
    """The plans of the config and with a near teacher have a basis of their own."""
    for plans, given in (
        (["config", "near+T1"], {}),
        (["config", "T1"], {"plan": ["config", "near+T2"]}),
        (["config", "T1"], {"plan": None}),
    ):
        assert "basis" not in build_space(trial, given, plans)
        with pytest.raises(DfmsdError, match=r"tune\.space\.basis: no plan takes it but those such as T1; list one in"):
            build_space(trial, {**given, "basis": ["auto", "own"]}, plans)
    assert "basis" in build_space(trial, {"plan": ["config", "T1&T2"]}, ["config"])


def test_default_space_of_a_loss_on_predictions_has_nothing_of_features(tune_config: MakeTune, tmp_path: Path) -> None:
    space = build_space(tune_config(tmp_path, loss={"name": "crosskd"}).as_trial(), {}, ["config", "T1"])
    assert list(space) == ["plan", "loss.weight", "inherit", "optim.lr"]


def test_given_parameters_restrict_and_extend_it(trial: DistillConfig) -> None:
    given = {
        "alpha": [0, 2.5],
        "balance": None,
        "data.batch_size": {"low": 2, "high": 8, "step": 2},
        "data.scale_jitter": [None, [0.8, 1.2]],
        "optim.weight_decay": {"low": 0, "high": 0.1},
    }
    space = build_space(trial, given, ["config", "T1"])
    assert "balance" not in space
    assert space["data.batch_size"].distribution == IntDistribution(2, 8, step=2)
    assert space["optim.weight_decay"].distribution == FloatDistribution(0.0, 0.1)
    label = space["data.scale_jitter"].distribution.choices[1]  # type: ignore[attr-defined]
    assert space["data.scale_jitter"].values[label] == [0.8, 1.2]
    first = first_values(space, trial)
    assert (first["loss.alpha"], first["data.batch_size"], first["data.scale_jitter"]) == (0, 2, None)


def test_first_trial_of_a_space_without_the_config_is_the_nearest(tune_config: MakeTune, tmp_path: Path) -> None:
    config = tune_config(tmp_path, optim=OptimConfig(lr=0.1)).as_trial()
    space = build_space(config, {"lr": {"low": 1e-4, "high": 1e-2}, "plan": ["T2", "T1"]}, [])
    first = first_values(space, config)
    assert (first["optim.lr"], first["plan"]) == (1e-2, "T2")


def test_values_are_set_without_changing_the_config(trial: DistillConfig) -> None:
    changed = with_values(trial, {"loss.alpha": 0.9, "balance": 4, "data.scale_jitter": [0.5, 1.5]})
    assert isinstance(changed.loss, dict)
    assert (changed.loss["alpha"], changed.balance, changed.data.scale_jitter) == (0.9, 4.0, (0.5, 1.5))
    assert with_values(trial, {}) != changed
    assert trial.data.scale_jitter is None


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"data.batch_size": 8}, 2.0),  # the square root of four times the images
        ({"optim.effective_batch": 18}, 3.0),
        ({"optim.name": "sgd"}, 0.01 * 2 / 16 / 0.01),
        ({"optim.lr": 0.5, "data.batch_size": 8}, 50.0),
    ],
)
def test_automatic_learning_rate_follows_the_values_of_a_trial(
    tune_config: MakeTune, tmp_path: Path, changes: dict[str, Any], factor: float
) -> None:
    automatic = tune_config(tmp_path, optim=OptimConfig(name="lamb")).as_trial()  # 0.01 with a batch of 2
    stated = tune_config(tmp_path, optim=OptimConfig(name="lamb", lr=0.02)).as_trial()
    assert with_values(automatic, changes).optim.lr == pytest.approx(factor * 0.01)
    assert with_values(stated, changes).optim.lr == changes.get("optim.lr", 0.02)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"alhpa": [0, 1]}, r"tune.space.alhpa: there is no such key; parameters are plan, basis, .*, loss.alpha"),
        ({"alpha": [0, "much"]}, r"tune.space.loss.alpha: loss.alpha must be a number, got 'much'"),
        ({"balance": {"low": -1, "high": 2}}, r"tune.space.balance: balance must be above 0"),
        ({"balance": {"low": 3}}, r"tune.space.balance: a range has low and high, and may have log and step"),
        ({"balance": {"low": 3, "high": 1}}, r"tune.space.balance: .*low <= high"),
        ({"balance": 2}, r"tune.space.balance: expected a list of values or \{low: 0.5, high: 8\}, got 2"),
        ({"seed": [0, 1]}, r"tune.space.seed: all trials share it; parameters are"),
        ({"stages.0.epochs": [1, 2]}, r"tune.space.stages.0.epochs: all trials share it; use plan for the stages"),
        ({"plan": ["T3"]}, r"tune.space.plan: T3 needs T3, but there are 2 teacher\(s\)"),
        ({"plan": ["T1-T2"]}, r"tune.space.plan: 'T1-T2', position 3: expected"),
        ({"loss.name": ["pkd"]}, r"tune.space.loss.name: loss.alpha: pkd has no such option"),
        ({"basis": ["other"]}, r"tune.space.basis: expected one of auto, own, former, student, got 'other'"),
        ({"alpha": [0.1], "loss.alpha": [0.1]}, r"tune.space.loss.alpha: loss.alpha is given twice"),
    ],
)
def test_bad_space_is_refused(trial: DistillConfig, space: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        build_space(trial, space, ["config", "T1"])


def test_space_of_single_values_is_refused(trial: DistillConfig) -> None:
    given = {**dict.fromkeys(["basis", "alpha", "pairing", "balance", "inherit", "lr"]), "plan": ["T1"]}
    with pytest.raises(DfmsdError, match="every parameter has a single value, so there is nothing to search"):
        build_space(trial, given, [])
