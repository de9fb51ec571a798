"""Search space: the parameters of a search, from the ``tune`` section of its config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from dfmsd.engine.config import DistillConfig
from dfmsd.engine.saved_config import to_plain
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.losses.basis import BasisName
from dfmsd.losses.config import head_methods, loss_parts
from dfmsd.tuning.plans import CONFIG, has_own_basis, plan_stages
from dfmsd.utils.coerce import AUTO, build

PLAN, BASIS = "plan", "basis"
"""Parameters that are no keys of the config."""
SHORT = {"alpha": "loss.alpha", "pairing": "loss.pairing", "weight": "loss.weight", "lr": "optim.lr"}
"""Shorter names of keys."""
SECTIONS = ("data", "optim", "student", "loss")
FIXED = {
    *("out", "stages", "seed", "devices", "num_nodes", "eval_every", "checkpoint_every", "max_hours", "logger"),
    *("data.root", "data.train", "data.val", "data.test", "data.holdout"),
}
"""Keys that every trial shares: where the run and its data are, how long it is, and how it is measured."""
RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a search.

    Attributes:
        distribution: its values for Optuna.
        values: value for Optuna -> value in a config, where they differ: Optuna stores no lists and mappings.
    """

    distribution: BaseDistribution
    values: Mapping[Any, Any]

    def as_json(self) -> Any:
        """Return a description, equal for equal parameters."""
        return json.loads(distribution_to_json(self.distribution))

    def nearest(self, value: Any) -> Any:
        """Return the value for Optuna that is nearest to one of a config: itself, an end of a range, or the first."""
        if isinstance(self.distribution, CategoricalDistribution):
            choices = self.distribution.choices
            return next((choice for choice in choices if _same(self.values.get(choice, choice), value)), choices[0])
        assert isinstance(self.distribution, FloatDistribution | IntDistribution)
        low, high = self.distribution.low, self.distribution.high
        return min(max(value, low), high) if isinstance(value, int | float) else low


Space = Mapping[str, Parameter]


def with_values(config: DistillConfig, changes: Mapping[str, Any]) -> DistillConfig:
    """Return a config with other values, after the checks of a YAML file.

    A learning rate that ``auto`` stands for follows them.

    Args:
        config: left as it is.
        changes: key such as ``loss.alpha`` -> value.

    Raises:
        DfmsdError: a value has the wrong type, is out of range, or does not go with the others.
    """
    values = to_plain(config)
    if _has_automatic_rate(config):
        values["optim"]["lr"] = AUTO
    for key, value in changes.items():
        section, dot, name = key.partition(".")
        (values[section] if dot else values)[name or section] = deepcopy(value)
    built: DistillConfig = build(DistillConfig, values, "config")
    return built


def _has_automatic_rate(config: DistillConfig) -> bool:
    """Return whether the learning rate is what ``auto`` gives, since a config keeps the number alone."""
    return config.optim == replace(config.optim, lr=AUTO).resolved(config.images_at_once, config.student)


def build_space(config: DistillConfig, given: Mapping[str, Any], plans: Sequence[str]) -> dict[str, Parameter]:
    """Build the search space: the default one with the given parameters in place of its own.

    Args:
        config: of a trial.
        given: parameter -> values, as in `TuneSection`.
        plans: default values of ``plan``.

    Raises:
        DfmsdError: an unknown parameter, or values that the config refuses; the message says which there are.
    """
    known = _known_keys(config)
    stated: dict[str, Any] = {}
    for name, values in given.items():
        key = SHORT.get(name, name)
        if key not in known:
            raise DfmsdError(f"tune.space.{name}: {_why_unknown(key, config)}; parameters are {', '.join(known)}")
        if key in stated:
            raise DfmsdError(f"tune.space.{name}: {key} is given twice; leave out one of the two")
        stated[key] = values
    merged = {**_default_space(config, plans), **stated}
    space = {key: _parameter(config, key, values) for key, values in merged.items() if values is not None}
    if BASIS in space and all(map(has_own_basis, plan_choices(space) or [CONFIG])):
        if BASIS in stated:
            raise DfmsdError(f"tune.space.{BASIS}: no plan takes it but those such as T1; list one in tune.space.plan")
        del space[BASIS]
    if not any(not parameter.distribution.single() for parameter in space.values()):
        raise DfmsdError("tune.space: every parameter has a single value, so there is nothing to search; widen one")
    return space


def plan_choices(space: Space) -> list[str]:
    """Return the plans of a space, if it has the parameter."""
    if PLAN not in space:
        return []
    distribution = space[PLAN].distribution
    assert isinstance(distribution, CategoricalDistribution)
    return [str(choice) for choice in distribution.choices]


def first_values(space: Space, config: DistillConfig) -> dict[str, Any]:
    """Return the values of the first trial: the config's own, or the nearest in the space.

    Args:
        space: of the search.
        config: of a trial.
    """
    values = {key: _value(to_plain(config), key) for key in space if key not in (PLAN, BASIS)}
    if PLAN in space:
        own = config.stages
        equal = (name for name in plan_choices(space) if plan_stages(config, name) == own)
        values[PLAN] = next(equal, CONFIG)
    if BASIS in space:
        values[BASIS] = "auto"
    return {key: parameter.nearest(values[key]) for key, parameter in space.items()}


def _default_space(config: DistillConfig, plans: Sequence[str]) -> dict[str, Any]:
    values = to_plain(config)
    lr = values["optim"]["lr"]
    space: dict[str, Any] = {PLAN: list(plans)}
    on_predictions = len(head_methods(config.loss)) == len(loss_parts(config.loss))
    if not on_predictions:
        space[BASIS] = ["auto", "own"]
    if isinstance(values["loss"], dict) and not on_predictions:
        space["loss.pairing"] = _with_own(values["loss"]["pairing"], ["auto", "stride"])
        if values["loss"]["name"] == "dfmsd":
            space["loss.alpha"] = _around(values["loss"]["alpha"], 0.0, 3.0)
    if config.balance is not None and not on_predictions:  # which has no effect on them
        space["balance"] = {**_around(config.balance, 0.5, 8.0), "log": True}
    elif isinstance(values["loss"], dict):
        weight = values["loss"]["weight"]
        space["loss.weight"] = {"low": weight / 4, "high": weight * 4, "log": True}
    if config.student.init is None:
        space["inherit"] = _with_own(config.inherit, [False, "auto"])
    return {**space, "optim.lr": {"low": lr / 3, "high": lr * 3, "log": True}}


def _with_own(own: Any, values: list[Any]) -> list[Any]:
    return values if own in values else [own, *values]


def _around(own: float, low: float, high: float) -> dict[str, Any]:
    return {"low": min(own, low), "high": max(own, high)}


def _known_keys(config: DistillConfig) -> list[str]:
    values = to_plain(config)
    nested = [f"{name}.{key}" for name in SECTIONS if isinstance(values[name], dict) for key in values[name]]
    keys = [PLAN, BASIS, *(name for name in values if name not in SECTIONS), *nested]
    return [key for key in keys if key not in FIXED]


def _why_unknown(key: str, config: DistillConfig) -> str:
    if key in FIXED or key.split(".")[0] in FIXED:
        return "all trials share it; use plan for the stages" if key.startswith("stages") else "all trials share it"
    if key.startswith("loss.") and isinstance(config.loss, list):
        return "loss is a list, whose options cannot be varied"
    return "there is no such key"


def _parameter(config: DistillConfig, key: str, values: Any) -> Parameter:
    where = f"tune.space.{key}"
    if isinstance(values, Mapping):
        return Parameter(_range(config, key, values, where), {})
    if not isinstance(values, list) or not values:
        raise DfmsdError(f"{where}: expected a list of values or {{low: 0.5, high: 8}}, got {values!r}")
    labels = [value if _is_scalar(value) else json.dumps(value) for value in values]
    if len({(type(label), label) for label in labels}) < len(labels):
        raise DfmsdError(f"{where}: a value is listed twice; leave out one of the two")
    for value in values:
        _check(config, key, value, where)
    return Parameter(CategoricalDistribution(labels), dict(zip(labels, values, strict=True)))


def _range(config: DistillConfig, key: str, values: Mapping[str, Any], where: str) -> BaseDistribution:
    unknown = [str(name) for name in values if name not in RANGE]
    if unknown or not {"low", "high"} <= values.keys():
        raise DfmsdError(f"{where}: a range has low and high, and may have log and step, got {dict(values)!r}")
    if key in (PLAN, BASIS):
        raise DfmsdError(f"{where}: list its values, such as [{'T1' if key == PLAN else 'auto'}]")
    numbers = [values[name] for name in ("low", "high", "step") if values.get(name) is not None]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise DfmsdError(f"{where}: low, high and step are numbers, got {dict(values)!r}")
    ends = [_value(to_plain(_check(config, key, values[name], where)), key) for name in ("low", "high")]
    low, high, log, step = *ends, bool(values.get("log", False)), values.get("step")
    try:
        if all(isinstance(end, int) for end in ends):
            return IntDistribution(low, high, log, int(step or 1))
        return FloatDistribution(low, high, log, step)
    except ValueError as error:
        raise DfmsdError(f"{where}: {foreign_message(error)}") from error


def _check(config: DistillConfig, key: str, value: Any, where: str) -> DistillConfig:
    """Return the config with a value, which it may refuse."""
    if key == PLAN:
        plan_stages(config, str(value))
        return config
    if key == BASIS:
        if value not in (names := get_args(BasisName)):
            raise DfmsdError(f"{where}: expected one of {', '.join(names)}, got {value!r}")
        return config
    try:
        return with_values(config, {key: value})
    except DfmsdError as error:
        raise DfmsdError(f"{where}: {error}") from error


def _value(values: Mapping[str, Any], key: str) -> Any:
    section, dot, name = key.partition(".")
    return values[section][name] if dot else values[section]


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _same(first: Any, second: Any) -> bool:
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)
