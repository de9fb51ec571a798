"""The ``loss`` section of a config: names and options of losses, checked and completed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import signature
from typing import Any, get_type_hints

import torch

from dfmsd.errors import DfmsdError, suggest
from dfmsd.losses.align import Pairing, Resize, check_pairing
from dfmsd.losses.criterion import Criterion
from dfmsd.losses.criterion_sum import check_terms
from dfmsd.losses.method import PredictionMethod
from dfmsd.losses.registry import LOSSES
from dfmsd.utils.coerce import coerce
from dfmsd.utils.removed import drop_removed

LossConfig = str | dict[str, Any] | list[dict[str, Any]]
"""Name of a loss; its ``name`` (`DEFAULT_LOSS` by default) and options; or a list of these for a sum of losses."""

DEFAULT_LOSS = "dfmsd"
CRITERION_OPTIONS: dict[str, Any] = {"pairing": Pairing, "weight": float, "project": bool, "resize": Resize}
"""Options that every loss has, those of `Criterion` -> type."""
FEATURE_OPTIONS: dict[str, Any] = {
    name: signature(Criterion).parameters[name].default for name in ("pairing", "project", "resize")
}
"""Those of them that concern features -> default."""
FORMER_VALUES = {"enhancement": {"none": False, "error+object": True}}
"""Option -> value of earlier versions -> the one that it is now."""
REMOVED_VALUES = {"enhancement": ("agreement", "error", "object", "ratio")}
"""Option -> values that earlier versions accepted."""


def check_options(name: str, **options: Any) -> dict[str, Any]:
    """Check a loss's name and options without building it.

    Args:
        name: a key of `dfmsd.losses.LOSSES`.
        **options: of the loss.

    Returns:
        The options, converted to their types, without those that were removed.

    Raises:
        DfmsdError: an unknown loss or option (the message suggests a similar one), or an impossible or removed value.
    """
    if name not in LOSSES:
        raise DfmsdError(f"loss.name: unknown loss {name!r}; the losses are {', '.join(sorted(LOSSES))}")
    options = drop_removed(options, getattr(LOSSES[name].Options, "removed", {}), "loss.")
    if issubclass(LOSSES[name], PredictionMethod):
        for key, default in FEATURE_OPTIONS.items():
            if options.pop(key, default) != default:
                raise DfmsdError(f"loss.{key}: {name} compares predictions, not features; leave {key} out")
    known = {**_option_types(name), **CRITERION_OPTIONS}
    for key in options:
        if key not in known:
            hint = suggest(key, known, f"its options are {', '.join(sorted(known))}")
            raise DfmsdError(f"loss.{key}: {name} has no such option; {hint}")
    options = {key: _coerce(key, value, known[key]) for key, value in options.items()}
    if not options.get("weight", 1.0) > 0:
        raise DfmsdError(f"loss.weight must be above 0, got {options['weight']}; use `no_distill` for a baseline")
    check_pairing(options.get("pairing", "auto"))
    method_options(name, options)
    return options


def check_loss(loss: LossConfig) -> None:
    """Check a loss, or every loss of a sum and whether they go together.

    Raises:
        DfmsdError: see `check_options`; an empty list, a loss listed twice, or two losses with a term of the same name.
    """
    parts = {name: check_options(name, **options) for name, options in loss_parts(loss).items()}
    if len(parts) > 1:
        check_terms({name: _terms(name, options) for name, options in parts.items()})


def resolve_loss(loss: LossConfig) -> LossConfig:
    """Return a loss, or a sum of losses, with the default of every option that it does not state.

    Raises:
        DfmsdError: see `check_loss`.
    """
    check_loss(loss)
    parts = [{"name": name, **_resolved(name, options)} for name, options in loss_parts(loss).items()]
    return parts if isinstance(loss, list) else parts[0]


def replace_loss(loss: LossConfig, stage_loss: LossConfig) -> LossConfig:
    """Return the loss of a stage.

    Args:
        loss: of the run.
        stage_loss: of the stage. Empty keeps the run's; options update those of the run's one loss; another name, or a
            list on either side, replaces the run's loss.

    Raises:
        DfmsdError: options without ``name`` for a list, which could belong to any of its losses.
    """
    if stage_loss == {}:
        return loss
    if isinstance(stage_loss, str):
        stage_loss = {"name": stage_loss}
    if isinstance(loss, str):
        loss = {"name": loss}
    if isinstance(loss, Mapping) and isinstance(stage_loss, Mapping):
        name = loss.get("name", DEFAULT_LOSS)
        return {**loss, **stage_loss} if stage_loss.get("name", name) == name else stage_loss
    if isinstance(stage_loss, Mapping) and "name" not in stage_loss:
        raise DfmsdError("loss.name: missing; the loss of a stage replaces a list of losses, so it needs a name")
    return stage_loss


def head_methods(loss: LossConfig, kind: type[Any] = PredictionMethod) -> list[str]:
    """Return the names of the losses that compare predictions, or of those of one kind."""
    return [name for name in loss_parts(loss) if issubclass(LOSSES[name], kind)]


def loss_parts(loss: LossConfig) -> dict[str, dict[str, Any]]:
    """Return name -> options of each loss of a config.

    Raises:
        DfmsdError: neither a loss nor a list of losses, an empty list, or a loss listed twice.
    """
    parts: dict[str, dict[str, Any]] = {}
    entries: Any = [{"name": loss}] if isinstance(loss, str) else [loss] if isinstance(loss, Mapping) else loss
    if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
        raise DfmsdError(f"loss: {loss!r} is neither a loss nor a list of losses; write one as {{name: dfmsd}}")
    for entry in entries:
        options = {"name": DEFAULT_LOSS, **entry}
        name = options.pop("name")
        for key in (name, *options):
            if not isinstance(key, str):
                raise DfmsdError(f"loss: {key!r} is neither a loss nor an option; write a loss as {{name: dfmsd}}")
        if name in parts:
            raise DfmsdError(f"loss: {name} is listed twice; leave out one of the two")
        parts[name] = options
    if not parts:
        raise DfmsdError("loss: the list is empty; add at least one loss, such as {name: dfmsd}")
    return parts


def method_options(name: str, options: Mapping[str, Any]) -> Any:
    """Build a method's ``Options`` without the options of `Criterion`."""
    return LOSSES[name].Options(**{key: value for key, value in options.items() if key not in CRITERION_OPTIONS})


def _option_types(name: str) -> dict[str, Any]:
    """Option -> type; constants of a method are no options."""
    options: Any = LOSSES[name].Options
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options) if field.init}


def _coerce(key: str, value: object, kind: Any) -> Any:
    """Convert an option to its type and refuse what no option accepts."""
    if isinstance(value, str):
        value = FORMER_VALUES.get(key, {}).get(value, value)
    if value in REMOVED_VALUES.get(key, ()):
        raise DfmsdError(f"loss.{key}: {value!r} was removed; choose true or false")
    value = coerce(value, kind, f"loss.{key}")
    if isinstance(value, float) and not math.isfinite(value):
        raise DfmsdError(f"loss.{key} must be finite, got {value}")
    return value


def _terms(name: str, options: Mapping[str, Any]) -> Sequence[str]:
    """Return the terms of a method, which may depend on its options."""
    with torch.device("meta"):  # allocates no memory and draws no random numbers
        return LOSSES[name](256, method_options(name, options)).terms


def _resolved(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    method = LOSSES[name]
    shared = {} if issubclass(method, PredictionMethod) else dict(FEATURE_OPTIONS)
    shared["weight"] = method.default_weight
    options = check_options(name, **options)
    values = method_options(name, options)
    return {**shared, **{key: getattr(values, key) for key in _option_types(name)}, **options}
