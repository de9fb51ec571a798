"""Distillation losses: what two pyramids have to do with each other.

```python
criterion = dfmsd.losses.build("dfmsd", student_levels, teacher_levels, alpha=2.0)
terms = criterion(student_pyramid, teacher_pyramid, boxes=boxes, size=(256, 256), stage=1)
loss = sum(terms.values())
```
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from dfmsd.align import Pairing
from dfmsd.errors import DfmsdError
from dfmsd.losses.criterion import Criterion
from dfmsd.losses.cwd import CWD, CWDOptions
from dfmsd.losses.dfmsd import DFMSD, DFMSDOptions
from dfmsd.losses.fitnet import FitNet, FitNetOptions
from dfmsd.losses.method import LossContext, Method
from dfmsd.losses.mgd import MGD, MGDOptions
from dfmsd.losses.pkd import PKD, PKDOptions
from dfmsd.types import LevelSpec

LOSSES: dict[str, type[Method]] = {"cwd": CWD, "dfmsd": DFMSD, "fitnet": FitNet, "mgd": MGD, "pkd": PKD}
"""Name -> module of one level, ``Module(channels, Module.Options(**options))``."""

CRITERION_OPTIONS = {"pairing": Pairing, "weight": float}

__all__ = [
    "CWD",
    "DFMSD",
    "LOSSES",
    "MGD",
    "PKD",
    "CWDOptions",
    "Criterion",
    "DFMSDOptions",
    "FitNet",
    "FitNetOptions",
    "LossContext",
    "MGDOptions",
    "Method",
    "PKDOptions",
    "build",
    "check_options",
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
    known = {**get_type_hints(LOSSES[name].Options), **CRITERION_OPTIONS}
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"{name} has {', '.join(sorted(known))}"
            raise DfmsdError(f"loss.{key}: no option of {name}; {hint}")
        _check_value(f"loss.{key}", value, known[key])
    if not options.get("weight", 1.0) > 0:
        raise DfmsdError(f"loss.weight: {options['weight']} must be above 0; use --no-distill for a baseline")
    LOSSES[name].Options(**{k: v for k, v in options.items() if k not in CRITERION_OPTIONS})
    return options


def _check_value(where: str, value: object, expected: Any) -> None:
    choices = get_args(expected)
    if choices and value not in choices:
        raise DfmsdError(f"{where}: {value!r} is not one of {', '.join(map(repr, choices))}")
    if expected is bool and not isinstance(value, bool):
        raise DfmsdError(f"{where}: {value!r} is not true or false")
    if expected is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise DfmsdError(f"{where}: {value!r} is not a number")


def build(
    name: str, student_levels: Sequence[LevelSpec], teacher_levels: Sequence[LevelSpec], **options: Any
) -> Criterion:
    """Build a loss between the pyramids of a student and a teacher.

    Args:
        name: a key of `LOSSES`.
        student_levels: levels of the student.
        teacher_levels: levels of the teacher.
        **options: ``pairing`` and ``weight`` of `Criterion`, the rest of the method
            (for ``dfmsd``: `DFMSDOptions`).

    Raises:
        DfmsdError: unknown name or option, impossible values, or fewer than two common levels.
    """
    check_options(name, **options)
    method = LOSSES[name]
    shared = {key: options.pop(key) for key in CRITERION_OPTIONS if key in options}
    settings = method.Options(**options)
    return Criterion(method, settings, student_levels, teacher_levels, **shared)
