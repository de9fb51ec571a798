"""Run configs: the same objects in YAML, as flags and in Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from dfmsd.detectors import DetectorConfig
from dfmsd.detectors.classnames import check_plain
from dfmsd.detectors.config import read_detector_config
from dfmsd.distillation.balance import DEFAULT_BALANCE, BalanceSchedule
from dfmsd.distillation.cache import StorageType
from dfmsd.distillation.stages import StageConfig, check_stages, epochs_without_labels
from dfmsd.engine.conflicts import check_stage, check_teacher_cache, check_unlabeled, with_labeler
from dfmsd.engine.runconfig import COMPUTE_DTYPES, Precision, RunConfig
from dfmsd.engine.teachersize import check_teacher_size
from dfmsd.errors import DfmsdError
from dfmsd.losses import DEFAULT_LOSS, LossConfig
from dfmsd.utils.coerce import AUTO, check_positive, check_range
from dfmsd.utils.removed import Replaced

DEFAULT_INHERIT: bool | str = False
"""``inherit`` of runs and comparisons that do not state it: False, or `AUTO`."""


@dataclass
class TrainConfig(RunConfig):
    """Supervised training of a detector.

    Args:
        out: run folder.
        data: images and annotations.
        optim: optimizer.
        seed: of weights, data order and augmentation.
        precision: compute precision of the network; ``auto`` is ``bf16`` on a CUDA GPU that has it, else ``32``.
        deliver: ``last``, ``ema``, ``best`` or ``auto`` weights.
        ema: decay of the moving average.
        eval_every: epochs between evaluations.
        patience: epochs without a better AP after which the run ends; null trains all epochs.
        max_hours: time limit of the run, which ends after an epoch.
        devices: processes per machine.
        num_nodes: number of machines.
        checkpoint_every: optimizer steps between two checkpoints; null means one per epoch and every 10 minutes.
        skip_nonfinite: number of steps with a non-finite loss or gradient to skip.
        logger: experiment logger, or a list of several.
        compile: run the network through torch.compile in training.
        model: the detector.
        epochs: passes over the training images.
    """

    model: DetectorConfig = field(default_factory=DetectorConfig)
    epochs: int = 12

    def __post_init__(self) -> None:
        """Convert the values to their types, and check their ranges.

        Raises:
            DfmsdError: a value has the wrong type or is out of range.
        """
        self.model = read_detector_config(self.model) if isinstance(self.model, str) else self.model
        super().__post_init__()
        self.optim = self.optim.resolved(self.images_at_once, self.model)
        check_range(self, ("epochs",), minimum=1)
        self.check_best(self.epochs)

    def as_distillation(self) -> DistillConfig:
        """Return the same run as a distillation with one stage and no teacher, which is what the engine runs."""
        shared = {name: getattr(self, name) for name in RunConfig.__dataclass_fields__}
        return DistillConfig(**shared, student=self.model, stages=[StageConfig(epochs=self.epochs)], inherit=False)


@dataclass
class DistillConfig(RunConfig):
    """Stage-wise distillation.

    Args:
        out: run folder.
        data: images and annotations.
        optim: optimizer.
        seed: of weights, data order, augmentation and masks.
        precision: compute precision of the networks; ``auto`` is ``bf16`` on a CUDA GPU that has it, else ``32``.
        deliver: ``last``, ``ema``, ``best`` or ``auto`` weights.
        ema: decay of the moving average.
        eval_every: epochs between evaluations.
        patience: epochs of the last stage without a better AP after which the run ends; null trains all epochs.
        max_hours: time limit of the run, which ends after an epoch.
        devices: processes per machine.
        num_nodes: number of machines.
        checkpoint_every: optimizer steps between two checkpoints; null means one per epoch and every 10 minutes.
        skip_nonfinite: number of steps with a non-finite loss or gradient to skip.
        logger: experiment logger, or a list of several.
        compile: run student, teachers and losses through torch.compile in training; in steps that `balance` measures,
            the teachers alone.
        student: the detector to train.
        stages: which teachers to use, and for how many epochs, with the keys of `StageConfig`; with ``near: true``, a
            teacher nearer to the student is made and teaches first.
        loss: name of the loss, or a mapping with its ``name`` and options, or a list of such mappings for a sum.
        balance: target norm of each teacher's gradient on the student's pyramid relative to the detector's own loss,
            measured throughout the run, see `GradientBalance`; null keeps the given weights.
        balance_schedule: ``cosine`` lets `balance` fall to 0 over the run, ``constant`` keeps it; ``auto`` is
            ``cosine`` for a student that starts from trained weights, at least in its backbone.
        sync_statistics: with several processes, compute means and deviations of the losses over the batches of all of
            them, so that the run equals one of a single process with all batches; false uses each process's own.
        inherit: start from the neck outputs and the head of the first stage's (first) teacher (true), or of the
            detector of this name, even if no stage has a teacher; see `inherit` in `dfmsd.distillation.inherit`.
            ``auto`` takes the first teacher of the first stage that fits, and none if none does or the student starts
            from another detector; a line says which and why.
        teacher_precision: compute precision of the teachers; null uses `precision`.
        teacher_classes: class name of a teacher, or of the detector that the student starts from -> that of the data,
            for names that differ by more than spelling; several may become one.
        teacher_size: longer side of the images that the teachers see, in pixels, a multiple of 32 above
            `data.image_size`; null shows them the student's images.
        teacher_cache: compute each image's teacher features once and keep them in ``ram`` for this run, or on ``disk``
            for later runs too; null computes them at every step. They are rounded to `teacher_cache_dtype`, so the
            results differ from a run without. Works with flips, and with all augmentations from a
            `data.augment_pool`.
        teacher_cache_dtype: float16, or int8 with a scale per channel, at half the size.
        teacher_cache_gib: limit in GiB of RAM, or of disk for the caches of all teachers.
    """

    removed: ClassVar[Mapping[str, Any]] = {"balance_by": "loss", "compile_loss": Replaced(False, "compile: true")}
    """Keys of earlier versions, see `drop_removed`."""
    student: DetectorConfig = field(default_factory=DetectorConfig)
    stages: list[StageConfig] = field(default_factory=list)
    loss: LossConfig = field(default_factory=lambda: {"name": DEFAULT_LOSS})
    balance: float | None = DEFAULT_BALANCE
    balance_schedule: Literal["auto", BalanceSchedule] = AUTO
    sync_statistics: bool = True
    inherit: bool | str = DEFAULT_INHERIT
    teacher_precision: Precision | None = None
    teacher_classes: dict[str, str] | None = None
    teacher_size: int | None = None
    teacher_cache: Literal["ram", "disk"] | None = None
    teacher_cache_dtype: StorageType = "float16"
    teacher_cache_gib: float = 8.0

    def __post_init__(self) -> None:
        """Convert the values to their types, and check them, alone and in combination.

        Raises:
            DfmsdError: a value has the wrong type or is out of range, or values contradict each other.
        """
        self.student = read_detector_config(self.student) if isinstance(self.student, str) else self.student
        super().__post_init__()
        self.optim = self.optim.resolved(self.images_at_once, self.student)
        if self.balance_schedule == AUTO:
            self.balance_schedule = "constant" if self.student.start == "random" else "cosine"
        check_stages(self.stages)
        self.check_best(self.epochs - len(self.epochs_without_labels))
        if isinstance(self.loss, str):
            self.loss = {"name": self.loss}
        if isinstance(self.loss, dict):
            self.loss = {"name": DEFAULT_LOSS, **self.loss}
        for index, stage in enumerate(self.stages):
            check_stage(index, stage, self.student, self.loss)
        if self.balance is not None and not 0 < self.balance < math.inf:
            raise DfmsdError(f"balance must be above 0, or null to keep the given weights, got {self.balance}")
        if self.inherit is True and not self.stages[0].teachers:
            raise DfmsdError(
                "inherit: the first stage has no teacher to inherit from; name one, such as inherit: runs/teacher"
            )
        check_plain(self.teacher_classes)
        check_positive(self, ("teacher_cache_gib",))
        if self.teacher_cache is not None:
            check_teacher_cache(self.stages, self.loss, self.data)
        if self.teacher_size is not None:
            check_teacher_size(self.teacher_size, self.data, self.stages, self.loss)
        if self.data.unlabeled is not None:
            check_unlabeled(self.stages, self.loss, self.data)
        self.data = with_labeler(self.data, self.stages)

    @property
    def epochs(self) -> int:
        """Total number of epochs."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def epochs_without_labels(self) -> list[int]:
        """Epochs, counted from 0, in stages without labels."""
        return epochs_without_labels(self.stages)

    @property
    def teaches(self) -> bool:
        """Whether a stage has a teacher."""
        return any(stage.teachers for stage in self.stages)

    @property
    def labeler(self) -> str | None:
        """Reference of the detector that labels images before training, if any are."""
        return self.data.pseudo.teacher

    @property
    def ancestor(self) -> str | None:
        """Reference of the detector that the student inherits from in any case; None with ``auto``."""
        if self.inherit is True:
            return self.stages[0].teachers[0]
        return None if self.inherit in (False, AUTO) else str(self.inherit)

    @property
    def teacher_scale(self) -> float:
        """Pixels of the teachers' images for one of the student's, along a side."""
        return 1.0 if self.teacher_size is None else self.teacher_size / self.data.image_size

    @property
    def teacher_dtype(self) -> torch.dtype:
        """Type that the teachers compute in."""
        return COMPUTE_DTYPES[self.teacher_precision or self.chosen_precision]

    def as_distillation(self) -> DistillConfig:
        """Return the run itself, as `TrainConfig.as_distillation` does."""
        return self

    def without_teachers(self) -> DistillConfig:
        """Return the baseline: the same loop, data, schedule and stages, without distillation terms or inheriting.

        Stages without labels, which would have nothing to learn from, are left out. Unlabeled images stay with
        pseudo-labels only.
        """
        stages = [StageConfig(epochs) for stage in self.stages if stage.labels for epochs in stage.lengths]
        undistilled: dict[str, Any] = {"balance": None, "balance_schedule": "constant"}
        undistilled |= {"teacher_cache": None, "teacher_size": None}
        data = self.data if self.data.labels_images else self.data.labeled_only()
        return replace(self, data=data, stages=stages, inherit=False, **undistilled)


Recipe = TrainConfig | DistillConfig
"""How a teacher is made that is trained on first use."""
