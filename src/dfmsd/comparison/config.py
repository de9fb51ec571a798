"""Configuration of a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from dfmsd.comparison.methods import BASELINE, Method, parse_method
from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.detectors.classnames import check_plain
from dfmsd.distillation.balance import DEFAULT_BALANCE, BalanceSchedule
from dfmsd.engine.config import DEFAULT_INHERIT
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.runconfig import Deliver, Precision, RunConfig
from dfmsd.errors import DfmsdError
from dfmsd.launching.config import LauncherName, RayConfig, SlurmConfig
from dfmsd.losses import LOSSES, check_options
from dfmsd.utils.coerce import AUTO, check_range, expand_home
from dfmsd.utils.files import check_path


@dataclass
class CompareConfig:
    """Methods x seeds x pairs of student and teachers, with equal budgets.

    Args:
        out: folder for the tables and all runs.
        pairs: name of a pair -> its teachers T1, T2, ...: weakest or closest first, strongest last.
        methods: see docs/compare.md; the baseline ``none`` is always included.
        data: images and annotations.
        student: the detector that is trained.
        seeds: for weights, data order, augmentation and masks.
        epochs: of every method, over all stages.
        optim: optimizer.
        loss_options: loss -> options that override its defaults, such as ``{mgd: {weight: 2}}``.
        balance: gradient norm of each method's loss relative to the detector's own; null keeps the loss weights.
        balances: losses of a method, such as ``cwd`` or ``pkd+crosskd`` -> its ``balance``.
        balance_schedule: of every method, as in `DistillConfig`.
        inherit: number of the teacher whose neck outputs and head initialize every student except the baseline's;
            ``auto`` for the first of a method's own first stage that fits, if any; null for none. The control
            ``inherit`` uses T1 unless a number is given.
        teacher_cache: cache teacher features on ``disk`` for all runs, in the ``ram`` of each run, or not (null);
            ``auto`` is ``disk``, or null where the augmentation changes the pixels in every epoch.
        teacher_classes: class name of a teacher of each pair -> that of the data, as in `DistillConfig`.
        teacher_size: longer side of the images that the teachers see, in pixels; null shows them the students' images.
        precision: of the networks' arithmetic.
        deliver: which weights of every run are compared, as in `RunConfig`.
        ema: decay of the moving average.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        launcher: where the runs are carried out: on this machine, or by SLURM or Ray on those of a cluster.
        slurm: jobs of the launcher slurm.
        ray: tasks of the launcher ray.
    """

    removed: ClassVar[Mapping[str, Any]] = {"balance_by": "loss"}
    """Keys of earlier versions, see `drop_removed`."""
    out: str
    pairs: dict[str, list[str]]
    methods: list[str]
    data: DataConfig = field(default_factory=DataConfig)
    student: DetectorConfig = field(default_factory=DetectorConfig)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    epochs: int = 12
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    balance: float | None = DEFAULT_BALANCE
    balances: dict[str, float] = field(default_factory=dict)
    balance_schedule: Literal["auto", BalanceSchedule] = AUTO
    inherit: int | Literal["auto"] | None = "auto" if DEFAULT_INHERIT == AUTO else None
    teacher_cache: Literal["auto", "ram", "disk"] | None = "auto"
    teacher_classes: dict[str, str] | None = None
    teacher_size: int | None = None
    precision: Precision = "32"
    deliver: Deliver = "last"
    ema: float = RunConfig.ema
    eval_every: int = 1
    launcher: LauncherName = "local"
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Validate the config.

        Raises:
            DfmsdError: the config is invalid.
        """
        self.out = expand_home(self.out)
        self.pairs = {name: [expand_home(teacher) for teacher in teachers] for name, teachers in self.pairs.items()}
        check_path("out", self.out)
        if not self.seeds or not self.methods:
            raise DfmsdError("methods and seeds: pass at least one of each, such as pkd and 0")
        if min(self.seeds) < 0:
            raise DfmsdError(f"seeds must be at least 0, got {min(self.seeds)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise DfmsdError(f"seeds: list each once, got {', '.join(map(str, self.seeds))}")
        check_range(self, ("epochs",), minimum=1)
        if not self.pairs:
            raise DfmsdError("pairs: empty; define at least one, such as {strong: [configs/teacher.yaml]}")
        for name, teachers in self.pairs.items():
            if not re.fullmatch(r"\w[\w.-]*", name) or name == BASELINE:
                raise DfmsdError(f"pairs: {name!r} cannot be used; use letters, digits, `_`, `-` and `.`, but not none")
            if not teachers or len(set(teachers)) < len(teachers):
                raise DfmsdError(f"pairs.{name}: list one or more teachers, each once; the plan T1+T1 repeats one")
            if isinstance(self.inherit, int) and not 1 <= self.inherit <= len(teachers):
                raise DfmsdError(f"inherit: pairs.{name} has no T{self.inherit}; choose from 1 to {len(teachers)}")
        self._check_options()
        check_plain(self.teacher_classes)
        self.parsed_methods()
        if self.data.labels_images and self.data.pseudo.teacher is None:
            self.data = replace(self.data, pseudo=replace(self.data.pseudo, teacher=self._strongest()))

    def _strongest(self) -> str:
        """Return the teacher that labels images for all runs: the last one of the pairs."""
        last = {teachers[-1] for teachers in self.pairs.values()}
        if len(last) > 1:
            raise DfmsdError(
                f"data.pseudo.teacher: the pairs share the baseline, so one teacher labels for all; name it, such as "
                f"{min(last)}"
            )
        return last.pop()

    def _check_options(self) -> None:
        for name, options in self.loss_options.items():
            if name not in LOSSES:
                raise DfmsdError(f"loss_options.{name}: unknown loss; available: {', '.join(sorted(LOSSES))}")
            check_options(name, **options)
        for family in self.balances:
            if parse_method(family).family != family:
                raise DfmsdError(f"balances.{family}: use losses without options and plan, such as cwd or pkd+crosskd")

    @property
    def used_cache(self) -> Literal["ram", "disk"] | None:
        """The teacher cache of the runs, with ``auto`` resolved."""
        if self.teacher_cache == "auto":
            return "disk" if self.data.uncacheable is None else None
        return self.teacher_cache

    def parsed_methods(self) -> list[Method]:
        """Parse the methods, without duplicates and with the baseline first."""
        methods = [parse_method(text) for text in [BASELINE, *self.methods]]
        return list({method.name: method for method in methods}.values())
