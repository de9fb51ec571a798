"""What a run is made of: the same object in YAML, as flags and in Python."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.balance import BalanceBy
from dfmsd.distillation.cache import StorageType
from dfmsd.distillation.stages import StageConfig, check_stages
from dfmsd.engine.optim import OptimConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import DEFAULT_LOSS, LossConfig, check_sum, head_methods, replace_loss
from dfmsd.utils.files import check_path

Precision = Literal["32", "bf16", "16"]
LoggerName = Literal["tensorboard", "wandb", "mlflow"]
COMPUTE_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
"""Type that the networks compute in, by `Precision`."""


@dataclass
class RunConfig:
    """What supervised training and distillation share.

    Args:
        out: run folder.
        data: images and annotations.
        optim: optimiser.
        seed: of weights, data order, augmentation and masks.
        precision: arithmetic of the networks; distillation terms are always float32.
        deliver: hand over the ``last`` weights or those of the epoch with the ``best`` AP. The best epoch is chosen
            on the validation images, so its AP is an optimistic one: comparisons use ``last``.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        devices: processes on each machine, each with a GPU where there are any, else a CPU process; under ``torchrun``
            its number counts.
        num_nodes: machines, as SLURM starts the processes; under ``torchrun`` its number counts.
        checkpoint_every: optimiser steps between two checkpoints, and so the most that a kill costs; null is an epoch
            or 10 minutes, whichever is less.
        skip_nonfinite: leave out so many steps with a loss or gradient that is not finite before the run ends; 0 ends
            it at the first one.
        logger: what draws the curves, ``tensorboard``, ``wandb`` or ``mlflow``, or a list of several.
    """

    out: str
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    precision: Precision = "32"
    deliver: Literal["last", "best"] = "last"
    eval_every: int = 1
    devices: int = 1
    num_nodes: int = 1
    checkpoint_every: int | None = None
    skip_nonfinite: int = 0
    logger: LoggerName | list[LoggerName] = "tensorboard"

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            DfmsdError: such a value.
        """
        check_path("out", self.out)
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise DfmsdError(f"checkpoint_every: {self.checkpoint_every} is below 1; give a number of steps, or null")
        if self.skip_nonfinite < 0:
            raise DfmsdError(f"skip_nonfinite: {self.skip_nonfinite} is below 0; give a number of steps")
        for name in ("eval_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise DfmsdError(f"{name}: {getattr(self, name)} is below 1; give at least 1")
        unknown = [name for name in self.loggers if name not in get_args(LoggerName)]
        if unknown:
            raise DfmsdError(f"logger: there is no {unknown[0]!r}; give some of {', '.join(get_args(LoggerName))}")
        if not 0 <= self.seed < 2**32:
            raise DfmsdError(f"seed: {self.seed} is out of range; give a number of 0 to {2**32 - 1}")

    @property
    def loggers(self) -> list[LoggerName]:
        """What draws the curves; each once."""
        return list(dict.fromkeys([self.logger] if isinstance(self.logger, str) else self.logger))

    @property
    def processes(self) -> tuple[int, int]:
        """Processes on each machine, and machines; ``torchrun``, if it started this process, knows better."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return self.devices, self.num_nodes
        own, every = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return own, every // own

    @property
    def world_size(self) -> int:
        """Processes on all machines together."""
        return math.prod(self.processes)


@dataclass
class TrainConfig(RunConfig):
    """Supervised training of any detector.

    Args:
        out: run folder.
        data: images and annotations.
        optim: optimiser.
        seed: of weights, data order and augmentation.
        precision: arithmetic of the network.
        deliver: ``last`` or ``best`` weights.
        eval_every: epochs between evaluations.
        devices: processes on each machine.
        num_nodes: machines.
        checkpoint_every: optimiser steps between two checkpoints; null is an epoch or 10 minutes.
        skip_nonfinite: steps that may be left out for a value that is not finite.
        logger: what draws the curves, one or a list of several.
        model: the detector.
        epochs: passes over the training images.
    """

    model: DetectorConfig = field(default_factory=DetectorConfig)
    epochs: int = 12

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            DfmsdError: such a value.
        """
        super().__post_init__()
        if self.epochs < 1:
            raise DfmsdError(f"epochs: {self.epochs} is below 1; give at least one")

    def as_distillation(self) -> DistillConfig:
        """Give the same run as a distillation with one stage and no teacher: there is only one loop."""
        shared = {name: getattr(self, name) for name in RunConfig.__dataclass_fields__}
        return DistillConfig(**shared, student=self.model, stages=[StageConfig(epochs=self.epochs)])


@dataclass
class DistillConfig(RunConfig):
    """Stage-wise distillation.

    Args:
        out: run folder.
        data: images and annotations.
        optim: optimiser.
        seed: of weights, data order, augmentation and masks.
        precision: arithmetic of the networks.
        deliver: ``last`` or ``best`` weights.
        eval_every: epochs between evaluations.
        devices: processes on each machine.
        num_nodes: machines.
        checkpoint_every: optimiser steps between two checkpoints; null is an epoch or 10 minutes.
        skip_nonfinite: steps that may be left out for a value that is not finite.
        logger: what draws the curves, one or a list of several.
        student: the detector that is trained.
        stages: who teaches, and for how long.
        loss: ``name`` of the loss and its options; several at once by a list of such.
        balance: gradient norm of each term on the student's pyramid relative to the detector's own loss, measured
            over the first steps of each stage; null keeps the stated weights.
        balance_by: give each ``term`` its own factor, or the whole ``loss`` one, so that its terms keep their ratios.
        sync_statistics: with several processes, take means and deviations of the losses over the batches of all of
            them, so that two processes learn as one with both batches; else each process takes those of its own.
        inherit: start with the neck outputs and the head of the first stage's (first) teacher (true), or of the
            detector of this name, also where no stage has a teacher; see `inherit` in `dfmsd.distillation.inherit`.
        teacher_precision: arithmetic of the teachers' forward pass; null takes `precision`.
        compile_loss: fuse the losses by torch.compile. Needs a C++ compiler (a GPU: triton) and a minute or two at the
            first step, with `balance` at the first one that it does not measure.
        teacher_cache: compute each image's teacher features once and keep them: in ``ram`` of this run, or on ``disk``
            for the next runs too; null computes them at every step. They are rounded to `teacher_cache_dtype`, so the
            run differs from one without. Flips are fine, `data.scale_jitter` is not.
        teacher_cache_dtype: float16, or int8 with a scale for each channel, of half the size.
        teacher_cache_gib: most GiB of RAM, or of disk together with the caches of other teachers.
    """

    student: DetectorConfig = field(default_factory=DetectorConfig)
    stages: list[StageConfig] = field(default_factory=list)
    loss: LossConfig = field(default_factory=lambda: {"name": DEFAULT_LOSS})
    balance: float | None = None
    balance_by: BalanceBy = "term"
    sync_statistics: bool = True
    inherit: bool | str = False
    teacher_precision: Precision | None = None
    compile_loss: bool = False
    teacher_cache: Literal["ram", "disk"] | None = None
    teacher_cache_dtype: StorageType = "float16"
    teacher_cache_gib: float = 8.0

    def __post_init__(self) -> None:
        """Refuse an impossible plan, loss, balance or cache.

        Raises:
            DfmsdError: what is wrong.
        """
        super().__post_init__()
        check_stages(self.stages)
        if isinstance(self.loss, dict):
            self.loss = {"name": DEFAULT_LOSS, **self.loss}
        for index, stage in enumerate(self.stages):
            try:
                check_sum(replace_loss(self.loss, stage.loss))
            except DfmsdError as error:
                raise DfmsdError(str(error) if stage.loss == {} else f"stages.{index}: {error}") from error
        if self.balance is not None and not 0 < self.balance < math.inf:
            raise DfmsdError(
                f"balance: {self.balance} is not above 0, or not finite; leave it out to keep the stated weights"
            )
        if self.inherit is True and not self.stages[0].teachers:
            raise DfmsdError(
                "inherit: the first stage has no teacher to inherit from; name one, such as inherit: runs/teacher"
            )
        self._check_teacher_cache()
        if self.data.unlabeled is not None:
            self._check_unlabeled()

    def _check_unlabeled(self) -> None:
        taught = [stage for stage in self.stages if stage.teachers]
        if not taught:
            raise DfmsdError(
                "data.unlabeled: images without annotations teach nothing without a teacher; leave it out, or give a "
                "stage a teacher"
            )
        compared = [name for stage in taught for name in head_methods(replace_loss(self.loss, stage.loss))]
        if compared:
            raise DfmsdError(
                f"data.unlabeled: {compared[0]} compares predictions, which needs annotations; choose a loss on "
                "features such as dfmsd, or leave data.unlabeled out"
            )

    def _check_teacher_cache(self) -> None:
        if self.teacher_cache not in (None, "ram", "disk") or self.teacher_cache_dtype not in get_args(StorageType):
            raise DfmsdError(
                f"teacher_cache and teacher_cache_dtype: expected `ram`, `disk` or null, and `float16` or `int8`, got "
                f"{self.teacher_cache!r} and {self.teacher_cache_dtype!r}"
            )
        if not self.teacher_cache_gib > 0:
            raise DfmsdError(f"teacher_cache_gib: {self.teacher_cache_gib} is out of range; give a number above 0")
        if self.teacher_cache and self.data.scale_jitter is not None:
            raise DfmsdError(
                "teacher_cache: data.scale_jitter shows other pixels in every epoch, so that no stored feature would "
                "ever be used again; leave out one of the two"
            )
        if self.teacher_cache and self.data.pad == "batch":
            raise DfmsdError(
                "teacher_cache: with data.pad `batch` the frame, and with it a feature, depends on the other images of "
                "the batch; set data.pad to square, or leave teacher_cache out"
            )

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def ancestor(self) -> str | None:
        """Reference of the detector that the student inherits from."""
        return self.stages[0].teachers[0] if self.inherit is True else self.inherit or None

    @property
    def teacher_dtype(self) -> torch.dtype:
        """Type that the teachers compute in."""
        return COMPUTE_DTYPES[self.teacher_precision or self.precision]

    def without_teachers(self) -> DistillConfig:
        """Give the baseline: the same loop, data, schedule and stages, without any distillation term or inheriting."""
        stages = [replace(stage, teacher=None, loss={}, fresh=True) for stage in self.stages]
        undistilled: dict[str, Any] = {"balance": None, "balance_by": "term", "teacher_cache": None}
        data = replace(self.data, unlabeled=None)
        return replace(self, data=data, stages=stages, inherit=False, compile_loss=False, **undistilled)
