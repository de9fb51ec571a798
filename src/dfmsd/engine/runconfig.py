"""RunConfig: the settings that training and distillation share."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from dfmsd.data import DataConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.errors import DfmsdError
from dfmsd.utils.coerce import check_positive, check_range, coerce_fields
from dfmsd.utils.device import supports_bf16
from dfmsd.utils.files import check_path

Precision = Literal["32", "bf16", "16"]
PrecisionChoice = Literal["auto", "32", "bf16", "16"]
Deliver = Literal["last", "ema", "best", "auto"]
LoggerName = Literal["tensorboard", "wandb", "mlflow"]
COMPUTE_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
"""Type that the networks compute in, by `Precision`."""


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

    def check_best(self, epochs: int) -> None:
        """Refuse to deliver the best epoch where only the last one is evaluated.

        Args:
            epochs: in which the student learns to detect.

        Raises:
            DfmsdError: says so.
        """
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
        return (self.optim.effective_batch or self.images_at_once) // self.images_at_once

    @property
    def images_at_once(self) -> int:
        """Labeled images in one batch of each process."""
        return self.data.batch_size * self.world_size

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
