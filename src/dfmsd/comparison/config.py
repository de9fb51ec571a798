"""What a comparison is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from dfmsd.comparison.methods import BASELINE, Method, parse_method
from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.balance import BalanceBy
from dfmsd.engine.config import Precision
from dfmsd.engine.optim import OptimConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import LOSSES, check_options
from dfmsd.utils.files import check_path


@dataclass
class CompareConfig:
    """Methods x seeds x pairs of student and teachers, at an equal budget.

    Args:
        out: folder of the tables and of all runs.
        pairs: name of a pair -> its teachers, T1, T2, ...: the closer or weaker one first, the strongest last.
        methods: see docs/compare.md; the baseline ``none`` is always one of them.
        data: images and annotations.
        student: the detector that is trained.
        seeds: of weights, data order, augmentation and masks.
        epochs: budget of every method, all stages together.
        optim: optimiser.
        loss_options: loss -> options that replace its defaults, such as ``{mgd: {weight: 2}}``.
        balance: gradient norm of each method's loss relative to the detector's own; null keeps the stated weights.
        balances: losses of a method, such as ``cwd`` or ``pkd+crosskd`` -> its own ``balance``.
        balance_by: balance the whole ``loss`` of a method, whose terms keep their ratios, or each ``term``.
        inherit: number of the teacher whose neck outputs and head every student but the baseline's starts with; null:
            none, and the control ``inherit`` takes T1's.
        teacher_cache: keep each image's teacher features: on ``disk`` for all runs, in ``ram`` of each run, or not.
        precision: arithmetic of the networks.
        eval_every: epochs between evaluations; the last epoch is always evaluated, and counts.
    """

    out: str
    pairs: dict[str, list[str]]
    methods: list[str]
    data: DataConfig = field(default_factory=DataConfig)
    student: DetectorConfig = field(default_factory=DetectorConfig)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    epochs: int = 12
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    balance: float | None = None
    balances: dict[str, float] = field(default_factory=dict)
    balance_by: BalanceBy = "loss"
    inherit: int | None = None
    teacher_cache: Literal["ram", "disk"] | None = "disk"
    precision: Precision = "32"
    eval_every: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            DfmsdError: what is wrong.
        """
        check_path("out", self.out)
        if not self.seeds or not self.methods:
            raise DfmsdError("methods and seeds: give at least one of each, such as --methods none,pkd --seeds 0,1,2")
        if min(self.seeds) < 0:
            raise DfmsdError(f"seeds: {min(self.seeds)} is below 0; give other numbers")
        if not self.pairs:
            raise DfmsdError("pairs: none is given; give at least one, such as {strong: [configs/teacher.yaml]}")
        for name, teachers in self.pairs.items():
            if not re.fullmatch(r"\w[\w.-]*", name) or name == BASELINE:
                raise DfmsdError(f"pairs: {name!r} is no name; it becomes a folder: letters, digits, `_`, `-` and `.`")
            if not teachers or len(set(teachers)) < len(teachers):
                raise DfmsdError(f"pairs.{name}: give one or more teachers, each once; the plan T1+T1 repeats one")
            if self.inherit is not None and not 1 <= self.inherit <= len(teachers):
                raise DfmsdError(f"inherit: there is no T{self.inherit} in pairs.{name}; give 1 to {len(teachers)}")
        self._check_options()
        self.parsed_methods()

    def _check_options(self) -> None:
        for name, options in self.loss_options.items():
            if name not in LOSSES:
                raise DfmsdError(f"loss_options.{name}: unknown loss; there is {', '.join(sorted(LOSSES))}")
            check_options(name, **options)
        for family in self.balances:
            if parse_method(family).family != family:
                raise DfmsdError(f"balances.{family}: give losses without options and plan, such as cwd or pkd+crosskd")

    def parsed_methods(self) -> list[Method]:
        """Read the methods, each once, the baseline first."""
        methods = [parse_method(text) for text in [BASELINE, *self.methods]]
        return list({method.name: method for method in methods}.values())
