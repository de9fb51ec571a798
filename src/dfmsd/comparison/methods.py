"""Method names: losses with options, and which teacher teaches in which stage.

```text
method  = "none" | "inherit" | losses ["@" plan]
losses  = loss {"+" loss}               pkd, dfmsd[enhancement=false], pkd+crosskd
plan    = stage {"+" stage}             T1, T1+T2, T2+T2, T1:1+T2:7 (shares of the epochs)
stage   = teacher {"&" teacher} [keys]  T1, T1&T2 (both at once)
keys    = "[" key {"," key} "]"         T1+T2[basis=former], T1[labels=false]+T1 (`basis` and `labels` of `StageConfig`)
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NoReturn, get_args

import yaml

from dfmsd.distillation.stages import StageConfig, taught_by
from dfmsd.errors import DfmsdError, suggest
from dfmsd.losses import LOSSES, LossConfig, check_options, head_methods
from dfmsd.losses.basis import BasisName

BASELINE = "none"
INHERIT_ONLY = "inherit"
"""Control for inheritance: trained like the baseline, but initialized from a teacher."""
EXAMPLES = (
    "none, pkd, dfmsd[enhancement=false], pkd+crosskd, dfmsd@T1+T2[basis=former], dfmsd@T1[labels=false]+T1, "
    "dfmsd@T1:1+T2:7 or dfmsd@T1&T2"
)
PLAN_EXAMPLES = "T1, T1+T2, T1:1+T2:7, T1&T2, T1+T2[basis=former] or T1[labels=false]+T1"
AFTER_STAGE = "`&`, `[`, `:`, `+` or the end"


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        teachers: numbers in the pair, from 1; several teach at the same time.
        share: of the epochs, relative to the other stages.
        basis: channels that the teachers' features are rotated into, as in `StageConfig`.
        labels: whether the student learns from the annotations too, as in `StageConfig`.
    """

    teachers: tuple[int, ...]
    share: float
    basis: BasisName = "auto"
    labels: bool = True


@dataclass(frozen=True)
class Method:
    """A parsed method name.

    Attributes:
        name: without spaces.
        losses: ``name`` and options of each loss of the sum; empty without a teacher.
        plan: the stages; empty for one stage with the last teacher of the pair.
        variant: whether it is an ablation or a control: with options, or a plan other than ``T1+T2+...`` with
            default shares, without a basis and with labels.
    """

    name: str
    losses: tuple[Mapping[str, Any], ...]
    plan: tuple[PlannedStage, ...] = ()
    variant: bool = False

    @property
    def family(self) -> str:
        """Losses without options and plan, such as ``pkd+crosskd``; ``none`` without a loss."""
        return "+".join(str(loss["name"]) for loss in self.losses) or BASELINE

    def loss(self, defaults: Mapping[str, Mapping[str, Any]]) -> LossConfig:
        """Return the ``loss`` of a run's config.

        Args:
            defaults: loss -> options that override its defaults; options in the method name take precedence.
        """
        terms = [{**defaults.get(str(loss["name"]), {}), **loss} for loss in self.losses]
        return terms[0] if len(terms) == 1 else terms

    def stages(self, teachers: Sequence[str], epochs: int) -> list[StageConfig]:
        """Return the stages of a run's config.

        Args:
            teachers: references of T1, T2, ...
            epochs: total over all stages.

        Raises:
            DfmsdError: the plan needs more teachers than the pair has, or has more stages than epochs.
        """
        if not self.losses:
            return [StageConfig(epochs=epochs)]
        return planned_stages(self.plan or (PlannedStage((len(teachers),), 1.0),), teachers, epochs, self.name)

    def slug(self, teachers: Sequence[str]) -> str:
        """Return the folder name of the method's runs; equivalent names, ``dfmsd@T2`` and ``dfmsd``, share it."""
        name = self.name
        if [replace(stage, share=1.0) for stage in self.plan] == [PlannedStage((len(teachers),), 1.0)]:
            name = name.partition("@")[0]
        return name.translate(str.maketrans("[:&", "--_", "]"))


def planned_stages(plan: Sequence[PlannedStage], teachers: Sequence[str], epochs: int, name: str) -> list[StageConfig]:
    """Return the stages of a run's config.

    Args:
        plan: the stages.
        teachers: references of T1, T2, ...
        epochs: total over all stages.
        name: of the plan or method, for messages.

    Raises:
        DfmsdError: the plan needs more teachers than there are, or has more stages than epochs.
    """
    missing = [number for stage in plan for number in stage.teachers if number > len(teachers)]
    if missing:
        raise DfmsdError(f"{name} needs T{missing[0]}, but there are {len(teachers)} teacher(s)")
    lengths = split_epochs(epochs, [stage.share for stage in plan])
    return [
        replace(
            taught_by(length, [teachers[number - 1] for number in stage.teachers]),
            basis=stage.basis,
            labels=stage.labels,
        )
        for length, stage in zip(lengths, plan, strict=True)
    ]


def split_epochs(epochs: int, shares: Sequence[float]) -> list[int]:
    """Split epochs by shares, with at least one epoch for each.

    Raises:
        DfmsdError: more stages than epochs.

    >>> split_epochs(8, [1, 7]), split_epochs(8, [1, 100]), split_epochs(3, [9, 1, 1])
    ([1, 7], [1, 7], [1, 1, 1])
    """
    if epochs < len(shares):
        raise DfmsdError(f"epochs must be at least the number of stages, {len(shares)}, got {epochs}")
    ends = [0]
    for index, share in enumerate(accumulate(shares)):
        left = len(shares) - 1 - index
        ends.append(min(max(round(epochs * share / sum(shares)), ends[-1] + 1), epochs - left))
    return [end - start for start, end in pairwise(ends)]


def split_methods(text: str) -> list[str]:
    """Split ``a,b[c=1,d=2],e`` at the commas outside brackets."""
    return [name.strip() for name in re.split(r",(?![^\[]*\])", text)]


def parse_method(text: str) -> Method:
    """Parse a method name.

    Raises:
        DfmsdError: the name is invalid; the message has the position, from 1, and what was expected or suggested.
    """
    name = re.sub(r"\s", "", text)
    if name in (BASELINE, INHERIT_ONLY):
        return Method(name, (), variant=name != BASELINE)
    scanner = _Scanner(name)
    losses = [_loss(scanner)]
    while scanner.take(r"\+"):
        losses.append(_loss(scanner))
    plan = _plan(scanner) if scanner.take("@") else ()
    if not scanner.at_end:
        scanner.fail(AFTER_STAGE if plan else "`[`, `+`, `@` or the end")
    compared = head_methods(losses)
    if compared and not all(stage.labels for stage in plan):
        scanner.refuse(f"{compared[0]} compares predictions, which a stage without labels does not make", 0)
    usual = plan == tuple(PlannedStage((number,), number) for number in range(1, len(plan) + 1)) and len(plan) != 1
    return Method(name, tuple(losses), plan, variant=not usual or any(len(loss) > 1 for loss in losses))


def parse_plan(text: str, key: str) -> tuple[PlannedStage, ...]:
    """Parse a plan alone, such as ``T1+T2``.

    Args:
        text: the plan.
        key: of the setting, for messages.

    Raises:
        DfmsdError: the plan is invalid, as in `parse_method`.
    """
    scanner = _Scanner(re.sub(r"\s", "", text), key, PLAN_EXAMPLES)
    plan = _plan(scanner)
    if not scanner.at_end:
        scanner.fail(AFTER_STAGE)
    return plan


class _Scanner:
    """Scanner that consumes a text from left to right."""

    def __init__(self, text: str, key: str = "methods", examples: str = EXAMPLES) -> None:
        self.text, self.position = text, 0
        self.key, self.examples = key, examples

    @property
    def at_end(self) -> bool:
        return self.position == len(self.text)

    def take(self, pattern: str) -> re.Match[str] | None:
        match = re.compile(pattern).match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def expect(self, pattern: str, what: str) -> re.Match[str]:
        return self.take(pattern) or self.fail(what)

    def fail(self, what: str) -> NoReturn:
        got = repr(self.text[self.position :]) if not self.at_end else "the end"
        self.refuse(f"expected {what}, got {got}; examples: {self.examples}", self.position)

    def refuse(self, message: str, position: int) -> NoReturn:
        raise DfmsdError(f"{self.key}: {self.text!r}, position {position + 1}: {message}")


def _loss(scanner: _Scanner) -> dict[str, Any]:
    start = scanner.position
    name = scanner.expect(r"[A-Za-z]\w*", "the name of a loss")[0]
    if name not in LOSSES:
        hint = suggest(name, [*LOSSES, BASELINE, INHERIT_ONLY], f"available: {', '.join(sorted(LOSSES))}")
        scanner.refuse(f"unknown loss {name!r}; {hint}", start)
    options: dict[str, Any] = {}
    opened = scanner.take(r"\[")
    while opened:
        key = scanner.expect(r"\w+", "the name of an option")[0]
        scanner.expect("=", "`=`")
        options[key] = _value(scanner.expect(r"[\w.+-]+", "a value")[0])
        if not scanner.take(","):
            scanner.expect(r"\]", "`,` or `]`")
            break
    try:
        check_options(name, **options)
    except DfmsdError as error:
        scanner.refuse(str(error), start)
    return {"name": name, **options}


def _plan(scanner: _Scanner) -> tuple[PlannedStage, ...]:
    plan: list[PlannedStage] = []
    while not plan or scanner.take(r"\+"):
        teachers = _teachers(scanner)
        keys = _stage_keys(scanner, plan)
        share = scanner.expect(r"\d*\.?\d+", "a share such as 2")[0] if scanner.take(":") else len(plan) + 1
        if not float(share) > 0:
            scanner.refuse("shares must be positive", scanner.position - 1)
        plan.append(PlannedStage(teachers, float(share), **keys))
    if not plan[-1].labels:
        scanner.refuse("the last stage needs labels, which the student's head learns from", scanner.position)
    return tuple(plan)


def _teachers(scanner: _Scanner) -> tuple[int, ...]:
    teachers: list[int] = []
    while not teachers or scanner.take("&"):
        start = scanner.position
        teachers.append(int(scanner.expect(r"T([1-9]\d*)", "a teacher such as T1")[1]))
        if teachers[-1] in teachers[:-1]:
            scanner.refuse(f"T{teachers[-1]} appears twice in one stage", start)
    return tuple(teachers)


def _stage_keys(scanner: _Scanner, former: Sequence[PlannedStage]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    opened = scanner.take(r"\[")
    while opened:
        start = scanner.position
        key = scanner.expect("basis=|labels=", "`basis=` or `labels=`")[0].rstrip("=")
        if key in keys:
            scanner.refuse(f"{key} appears twice in one stage", start)
        start = scanner.position
        if key == "labels":
            keys[key] = scanner.expect("true|false", "true or false")[0] == "true"
        else:
            keys[key] = scanner.expect("|".join(get_args(BasisName)), "auto, own, former or student")[0]
        if keys[key] == "former" and not (former and len(former[-1].teachers) == 1):
            scanner.refuse("former needs a stage before it with exactly one teacher; choose student or own", start)
        if not scanner.take(","):
            scanner.expect(r"\]", "`,` or `]`")
            break
    return keys


def _value(text: str) -> Any:
    try:
        return float(text) if re.search(r"[eE.]", text) else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)
