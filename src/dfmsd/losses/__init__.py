"""Distillation losses: what two pyramids have to do with each other.

```python
criterion = dfmsd.losses.build("dfmsd", student_levels, teacher_levels, alpha=2.0)
terms = criterion(student_pyramid, teacher_pyramid, boxes=boxes, size=(256, 256), stage=1)
loss = sum(terms.values())
```

Several methods at once: ``dfmsd.losses.build_sum([{"name": "pkd"}, {"name": "mgd", "ratio": 0.5}], ...)``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import signature
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from dfmsd.errors import DfmsdError
from dfmsd.losses.align import Pairing, Resize
from dfmsd.losses.amd import AMD, AMDOptions
from dfmsd.losses.criterion import Criterion, CriterionSum, check_terms
from dfmsd.losses.crosskd import CrossKD, CrossKDOptions
from dfmsd.losses.cwd import CWD, CWDOptions
from dfmsd.losses.dfmsd import DFMSD, DFMSDOptions
from dfmsd.losses.dmkd import DMKD, DMKDOptions
from dfmsd.losses.fgd import FGD, FGDOptions
from dfmsd.losses.fitnet import FitNet, FitNetOptions
from dfmsd.losses.ld import LD, LDOptions
from dfmsd.losses.method import HeadLevel, HeadMethod, HeadSide, LossContext, Method
from dfmsd.losses.mgd import MGD, MGDOptions
from dfmsd.losses.pkd import PKD, PKDOptions
from dfmsd.types import LevelSpec

LOSSES: dict[str, type[Method]] = {
    "amd": AMD,
    "crosskd": CrossKD,
    "cwd": CWD,
    "dfmsd": DFMSD,
    "dmkd": DMKD,
    "fgd": FGD,
    "fitnet": FitNet,
    "ld": LD,
    "mgd": MGD,
    "pkd": PKD,
}
"""Name -> module of one level, ``Module(channels, Module.Options(**options))``."""

LossConfig = str | dict[str, Any] | list[dict[str, Any]]
"""Name of a loss; its ``name`` (`DEFAULT_LOSS` by default) and options; or a list of these for a sum of several."""

DEFAULT_LOSS = "dfmsd"
REMOVED = {"loss.enhancement": ("agreement",)}
"""Option -> values that earlier versions accepted."""
CRITERION_OPTIONS = {"pairing": Pairing, "weight": float, "project": bool, "resize": Resize}

__all__ = [
    "AMD",
    "CWD",
    "DEFAULT_LOSS",
    "DFMSD",
    "DMKD",
    "FGD",
    "LD",
    "LOSSES",
    "MGD",
    "PKD",
    "AMDOptions",
    "CWDOptions",
    "Criterion",
    "CriterionSum",
    "CrossKD",
    "CrossKDOptions",
    "DFMSDOptions",
    "DMKDOptions",
    "FGDOptions",
    "FitNet",
    "FitNetOptions",
    "HeadLevel",
    "HeadMethod",
    "HeadSide",
    "LDOptions",
    "LossConfig",
    "LossContext",
    "MGDOptions",
    "Method",
    "PKDOptions",
    "build",
    "build_sum",
    "check_options",
    "check_sum",
    "head_methods",
    "replace_loss",
    "resolve_loss",
]


def check_options(name: str, **options: Any) -> dict[str, Any]:
    """Check a loss's name and options without building it.

    Returns:
        The options.

    Raises:
        DfmsdError: an unknown loss or option (near names are offered), or a value outside its choices.
    """
    if name not in LOSSES:
        raise DfmsdError(f"loss.name: unknown loss {name!r}; there is {', '.join(sorted(LOSSES))}")
    known = {**_switches(LOSSES[name].Options), **CRITERION_OPTIONS}
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"{name} has {', '.join(sorted(known))}"
            raise DfmsdError(f"loss.{key}: no option of {name}; {hint}")
        _check_value(f"loss.{key}", value, known[key])
    if not options.get("weight", 1.0) > 0:
        raise DfmsdError(f"loss.weight: {options['weight']} must be above 0; use --no-distill for a baseline")
    _settings(name, options)
    return options


def _settings(name: str, options: Mapping[str, Any]) -> Any:
    """Give a method's own options, without those of the criterion around it."""
    return LOSSES[name].Options(**{key: value for key, value in options.items() if key not in CRITERION_OPTIONS})


def _switches(options: Any) -> dict[str, Any]:
    """Option -> type, of those that are no constant of the method."""
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options) if field.init}


def _check_value(where: str, value: object, expected: Any) -> None:
    choices = get_args(expected) if get_origin(expected) is Literal else ()
    if value in REMOVED.get(where, ()):
        raise DfmsdError(f"{where}: {value!r} was removed; use one of {', '.join(map(repr, choices))}")
    if choices and value not in choices:
        raise DfmsdError(f"{where}: {value!r} is not one of {', '.join(map(repr, choices))}")
    if expected is bool and not isinstance(value, bool):
        raise DfmsdError(f"{where}: {value!r} is not true or false")
    if expected is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise DfmsdError(f"{where}: {value!r} is not a number")
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise DfmsdError(f"{where}: {value!r} is not finite")


def build(
    name: str, student_levels: Sequence[LevelSpec], teacher_levels: Sequence[LevelSpec], **options: Any
) -> Criterion:
    """Build a loss between the pyramids of a student and a teacher.

    Args:
        name: a key of `LOSSES`.
        student_levels: levels of the student.
        teacher_levels: levels of the teacher.
        **options: ``pairing``, ``weight``, ``project`` and ``resize`` of `Criterion`, the rest of the method
            (for ``dfmsd``: `DFMSDOptions`).

    Raises:
        DfmsdError: unknown name or option, impossible values, or fewer than two common levels.
    """
    check_options(name, **options)
    method = LOSSES[name]
    shared = {key: options[key] for key in CRITERION_OPTIONS if key in options}
    return Criterion(method, _settings(name, options), student_levels, teacher_levels, **shared)


def check_sum(loss: LossConfig) -> None:
    """Check a loss, or each one of several and whether they go together.

    Raises:
        DfmsdError: see `check_options`; no loss at all, one twice, or two that have a term of the same name.
    """
    parts = _parts(loss)
    for name, options in parts.items():
        check_options(name, **options)
    if len(parts) > 1:
        check_terms({name: _terms(name, options) for name, options in parts.items()})


def head_methods(loss: LossConfig) -> list[str]:
    """Name the losses that compare predictions."""
    return [name for name in _parts(loss) if issubclass(LOSSES[name], HeadMethod)]


def _terms(name: str, options: Mapping[str, Any]) -> Sequence[str]:
    """Name the terms of a method, which may depend on its options."""
    with torch.device("meta"):  # no memory, no random numbers
        return LOSSES[name](256, _settings(name, options)).terms


def build_sum(
    loss: LossConfig, student_levels: Sequence[LevelSpec], teacher_levels: Sequence[LevelSpec]
) -> Criterion | CriterionSum:
    """Build one loss, or the sum of several, from what a config says.

    Args:
        loss: ``name`` and options of one, or a list of such.
        student_levels: levels of the student.
        teacher_levels: levels of the teacher.

    Raises:
        DfmsdError: see `build` and `check_sum`.
    """
    check_sum(loss)
    parts = {name: build(name, student_levels, teacher_levels, **options) for name, options in _parts(loss).items()}
    return CriterionSum(parts) if len(parts) > 1 else next(iter(parts.values()))


def replace_loss(loss: LossConfig, own: LossConfig) -> LossConfig:
    """Give the loss of a stage: options over those of the run's one loss; another one, or a list, stands alone.

    Args:
        loss: of the run.
        own: of the stage; an empty mapping keeps the run's.

    Raises:
        DfmsdError: options without ``name`` over a list, which do not tell whose they are.
    """
    if own == {}:
        return loss
    if isinstance(loss, Mapping) and isinstance(own, Mapping):
        name = loss.get("name", DEFAULT_LOSS)
        return {**loss, **own} if own.get("name", name) == name else own
    if isinstance(own, Mapping) and "name" not in own:
        raise DfmsdError("loss.name: missing; over a list of losses a stage's own loss stands alone, so name it")
    return own


def resolve_loss(loss: LossConfig) -> LossConfig:
    """Write out every option of a loss, or of each one in a sum, with its default where none is stated.

    Raises:
        DfmsdError: see `check_sum`.
    """
    check_sum(loss)
    parts = [{"name": name, **_resolved(name, options)} for name, options in _parts(loss).items()]
    return parts if isinstance(loss, list) else parts[0]


def _resolved(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    method = LOSSES[name]
    parameters = signature(Criterion).parameters
    shared = {**{key: parameters[key].default for key in CRITERION_OPTIONS}, "weight": method.default_weight}
    own = _settings(name, options)
    return {**shared, **{key: getattr(own, key) for key in _switches(method.Options)}, **options}


def _parts(loss: LossConfig) -> dict[str, dict[str, Any]]:
    """Name -> options of each loss."""
    parts: dict[str, dict[str, Any]] = {}
    given: Any = [{"name": loss}] if isinstance(loss, str) else [loss] if isinstance(loss, Mapping) else loss
    if not isinstance(given, Sequence):
        raise DfmsdError(f"loss: {given!r} is neither a loss nor a list of such; give one, such as {{name: dfmsd}}")
    for part in given:
        options = {"name": DEFAULT_LOSS, **part}
        name = options.pop("name")
        for key in (name, *options):
            if not isinstance(key, str):
                raise DfmsdError(f"loss: {key!r} is neither a loss nor an option; give a name, such as dfmsd")
        if name in parts:
            raise DfmsdError(f"loss: {name} is there twice; leave out one of the two")
        parts[name] = options
    if not parts:
        raise DfmsdError("loss: the list is empty; give at least one, such as {name: dfmsd}")
    return parts
