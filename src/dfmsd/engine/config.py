"""Run configs: the same objects in YAML, as flags and in Python."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.detectors.classnames import check_plain
from dfmsd.detectors.config import read_detector_config
from dfmsd.distillation.balance import DEFAULT_BALANCE
from dfmsd.distillation.cache import StorageType
from dfmsd.distillation.near import obstacle
from dfmsd.distillation.stages import AUTO, NearConfig, StageConfig, check_stages, epochs_without_labels
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.teachersize import check_teacher_size
from dfmsd.errors import DfmsdError
from dfmsd.losses import DEFAULT_LOSS, LossConfig, QueryMethod, check_loss, head_methods, replace_loss
from dfmsd.utils.coerce import check_positive, check_range, coerce_fields
from dfmsd.utils.device import supports_bf16
from dfmsd.utils.files import check_path
from dfmsd.utils.removed import Replaced

Precision = Literal["32", "bf16", "16"]
PrecisionChoice = Literal["auto", "32", "bf16", "16"]
Deliver = Literal["last", "ema", "best", "auto"]
LoggerName = Literal["tensorboard", "wandb", "mlflow"]
COMPUTE_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
"""Type that the networks compute in, by `Precision`."""
DEFAULT_INHERIT: bool | str = False
"""``inherit`` of runs and comparisons that do not state it: False, or `AUTO`."""


@dataclass
class RunConfig:
    """Settings that supervised training and distillation share.

    Args:
        out: run folder.
        data: images and annotations.
        optim: optimizer.
        seed: of weights, data order, augmentation and masks.
        precision: compute precision of the networks; distillation terms are always float32. ``auto`` is ``bf16`` on a
            CUDA GPU that has it in hardware, else ``32``; the run's config keeps what it chose.
        deliver: deliver the ``last`` weights, their moving average over the steps (``ema``), the better of these two at
            the end (``auto``), or those of the epoch with the ``best`` AP. ``auto`` and ``best`` choose on
            the validation images, so the AP of the best epoch is optimistic, and that of ``auto`` slightly.
        ema: decay of the moving average, in 0..1; less in the first steps, see `WeightAverage`.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        patience: end the run when the last stage has not reached a better AP for this many epochs, `eval_every` at
            least; null trains all epochs. The learning rate is that of the whole run.
        max_hours: end the run after the last epoch that fits into this time, of training and evaluation but not of
            teachers that are made first; at least one epoch is trained. The learning rate is that of the whole run.
        devices: processes per machine, each with a GPU if there are any, else on the CPU; overridden by ``torchrun``.
        num_nodes: number of machines, on which SLURM starts the processes; overridden by ``torchrun``.
        checkpoint_every: optimizer steps between two checkpoints, the most that a kill can cost; null means one per
            epoch and every 10 minutes.
        skip_nonfinite: number of steps with a non-finite loss or gradient to skip before the run ends; 0 ends it at
            the first one.
        logger: experiment logger, ``tensorboard``, ``wandb`` or ``mlflow``, or a list of several.
        compile: run the networks, and the losses of teachers, through torch.compile in training. Requires a C++
            compiler, and Triton on a GPU; the first steps then take minutes. In steps that `balance` measures, the
            teachers alone are compiled.
    """

    out: str
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    precision: PrecisionChoice = "auto"
    deliver: Deliver = "last"
    ema: float = 0.9998
    eval_every: int = 1
    patience: int | None = None
    max_hours: float | None = None
    devices: int = 1
    num_nodes: int = 1
    checkpoint_every: int | None = None
    skip_nonfinite: int = 0
    logger: LoggerName | list[LoggerName] = "tensorboard"
    compile: bool = False

    def __post_init__(self) -> None:
        """Convert the values to their types, and check their ranges.

        Raises:
            DfmsdError: a value has the wrong type or is out of range.
        """
        coerce_fields(self)
        check_path("out", self.out)
        check_range(self, ("eval_every", "patience", "devices", "num_nodes", "checkpoint_every"), minimum=1)
        check_range(self, ("skip_nonfinite",), minimum=0)
        self.check_effective_batch(self.devices * self.num_nodes)
        self.optim = self.optim.resolved(self.data.batch_size * self.world_size)
        if self.patience is not None and self.patience < self.eval_every:
            raise DfmsdError(
                f"patience must be at least eval_every, {self.eval_every}, since AP is measured only then, got "
                f"{self.patience}"
            )
        if self.max_hours is not None:
            check_positive(self, ("max_hours",))
        if not 0 <= self.ema < 1:
            raise DfmsdError(f"ema must be in 0..1 and below 1, got {self.ema}")
        if not 0 <= self.seed < 2**32:
            raise DfmsdError(f"seed must be in 0..{2**32 - 1}, got {self.seed}")

    def _check_best(self, epochs: int) -> None:
        if self.deliver == "best" and self.eval_every > epochs:
            raise DfmsdError(
                f"deliver: best chooses among evaluated epochs, but with eval_every {self.eval_every} only the last of "
                f"{epochs} is evaluated; lower eval_every, or deliver the last weights"
            )

    def check_effective_batch(self, processes: int) -> None:
        """Refuse an effective batch that is not made up of whole batches of all processes.

        Args:
            processes: of the run, which ``torchrun`` may have set.

        Raises:
            DfmsdError: says what it must be a multiple of.
        """
        images, effective = self.data.batch_size * processes, self.optim.effective_batch
        if effective is not None and effective % images:
            raise DfmsdError(
                f"optim.effective_batch must be a multiple of {images}, data.batch_size {self.data.batch_size} in "
                f"{processes} process(es), got {effective}"
            )

    @property
    def per_step(self) -> int:
        """Batches of each process per optimizer step."""
        images = self.data.batch_size * self.world_size
        return (self.optim.effective_batch or images) // images

    @property
    def chosen_precision(self) -> Precision:
        """The precision, where ``auto`` is that of this machine."""
        if self.precision == "auto":
            return "bf16" if supports_bf16() else "32"
        return self.precision

    @property
    def loggers(self) -> list[LoggerName]:
        """Experiment loggers, each once."""
        return list(dict.fromkeys([self.logger] if isinstance(self.logger, str) else self.logger))

    @property
    def processes(self) -> tuple[int, int]:
        """Processes per machine, and number of machines; from ``torchrun``, if it started this process."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return self.devices, self.num_nodes
        local, total = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return local, total // local

    @property
    def world_size(self) -> int:
        """Total number of processes."""
        return math.prod(self.processes)


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
        check_range(self, ("epochs",), minimum=1)
        self._check_best(self.epochs)

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
        check_stages(self.stages)
        self._check_best(self.epochs - len(self.epochs_without_labels))
        if isinstance(self.loss, str):
            self.loss = {"name": self.loss}
        if isinstance(self.loss, dict):
            self.loss = {"name": DEFAULT_LOSS, **self.loss}
        for index, stage in enumerate(self.stages):
            try:
                check_loss(replace_loss(self.loss, stage.loss))
            except DfmsdError as error:
                raise DfmsdError(str(error) if stage.loss == {} else f"stages.{index}: {error}") from error
            self._check_near(index, stage)
            self._check_without_labels(index, stage)
        if self.balance is not None and not 0 < self.balance < math.inf:
            raise DfmsdError(f"balance must be above 0, or null to keep the given weights, got {self.balance}")
        if self.inherit is True and not self.stages[0].teachers:
            raise DfmsdError(
                "inherit: the first stage has no teacher to inherit from; name one, such as inherit: runs/teacher"
            )
        check_plain(self.teacher_classes)
        self._check_teacher_cache()
        if self.teacher_size is not None:
            check_teacher_size(self.teacher_size, self.data, self.stages, self.loss)
        if self.data.unlabeled is not None:
            self._check_unlabeled()
        self.data = self._with_labeler()

    def _check_near(self, index: int, stage: StageConfig) -> None:
        if not isinstance(stage.near, NearConfig):
            return
        found = obstacle(stage, self.student, replace_loss(self.loss, stage.loss))
        if found is not None:
            raise DfmsdError(f"stages.{index}.near: {found.reason}; {found.remedy}")

    def _check_without_labels(self, index: int, stage: StageConfig) -> None:
        compared = head_methods(replace_loss(self.loss, stage.loss))
        if compared and not stage.labels:
            raise DfmsdError(
                f"stages.{index}.labels: {compared[0]} compares predictions, which a stage without labels does not "
                f"make; give the stage a loss on features, such as stages.{index}.loss: dfmsd"
            )

    def _check_unlabeled(self) -> None:
        taught = [stage for stage in self.stages if stage.teachers]
        if not taught and not self.data.labels_images:
            raise DfmsdError(
                "data.unlabeled: images without annotations need a teacher; leave it out, give a stage a teacher, or "
                "name one in data.pseudo.teacher"
            )
        compared = [name for stage in taught for name in head_methods(replace_loss(self.loss, stage.loss))]
        if compared:
            raise DfmsdError(
                f"data.unlabeled: {compared[0]} compares predictions, which requires annotations; choose a loss on "
                "features such as dfmsd, or leave data.unlabeled out"
            )

    def _with_labeler(self) -> DataConfig:
        """Return the data with the name of the detector that labels images."""
        if not self.data.labels_images or self.data.pseudo.teacher is not None:
            return self.data
        first = self.stages[0].teachers
        if not first:
            raise DfmsdError("data.pseudo.teacher: the first stage has no teacher; name the detector that labels")
        return replace(self.data, pseudo=replace(self.data.pseudo, teacher=first[0]))

    def _check_teacher_cache(self) -> None:
        check_positive(self, ("teacher_cache_gib",))
        compared = [
            name for stage in self.stages for name in head_methods(replace_loss(self.loss, stage.loss), QueryMethod)
        ]
        if self.teacher_cache and compared:
            raise DfmsdError(
                f"teacher_cache: {compared[0]} runs the whole teacher in every step, so stored features would save "
                "nothing; leave out one of the two"
            )
        if self.teacher_cache and self.data.uncacheable is not None:
            raise DfmsdError(f"teacher_cache: {self.data.uncacheable}, or leave teacher_cache out")

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
        undistilled: dict[str, Any] = {"balance": None, "teacher_cache": None, "teacher_size": None}
        data = self.data if self.data.labels_images else self.data.labeled_only()
        return replace(self, data=data, stages=stages, inherit=False, **undistilled)


Recipe = TrainConfig | DistillConfig
"""How a teacher is made that is trained on first use."""
