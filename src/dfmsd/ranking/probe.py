"""Probes: short distillations on a part of the training images, measured on the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.split import DetectionSplit
from dfmsd.data.splitcheck import check_measurable, check_trainable
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.accumulation import count_steps
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import fit
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import console


def probe_data(config: DistillConfig, steps: int, holdout: float, val_images: int | None) -> CocoDataModule:
    """Read the training images without a held-out share, and that share in place of the validation images.

    Args:
        config: the run; its own ``data.holdout`` is kept, unless it is 0.
        steps: of a probe, which needs no more images than its batches hold.
        holdout: share of the training images, 0..0.5.
        val_images: number of held-out images to use; None uses all.

    Raises:
        DfmsdError: one of the two has no object.
    """
    changed = replace(config.data.labeled_only(), holdout=config.data.holdout or holdout)
    data = CocoDataModule(changed, seed=config.seed)
    if steps:
        data.train.coco = spread(data.train.coco, steps * config.per_step * config.data.batch_size)
    if val_images is not None:
        data.val.coco = spread(data.val.coco, val_images)
    data.num_labeled = len(data.train)
    check_trainable(data.train.coco)
    check_measurable(data.val.coco)
    return data


def spread(split: DetectionSplit, images: int) -> DetectionSplit:
    """Return a split of ``images`` of a split's images, evenly spread over it, or all if there are fewer."""
    step = max(1, len(split) // images)
    return split.subset(range(0, len(split), step)[:images])


def probe_config(config: DistillConfig, data: CocoDataModule, steps: int, teacher: str | None) -> DistillConfig:
    """Derive the config of a probe: one stage of about ``steps`` steps, in whole epochs.

    Args:
        config: the run.
        data: of the probes.
        steps: at least 1.
        teacher: the only teacher, with labels, and the loss and basis of the first stage that names it; None for none.
    """
    epochs = max(1, round(steps / steps_per_epoch(config, data)))
    own: dict[str, Any] = {
        "eval_every": epochs,
        "patience": None,
        "max_hours": None,
        "logger": [],
        "deliver": "last",
        "checkpoint_every": None,
        "teacher_cache": None,
    }
    if teacher is None:
        config = config.without_teachers()
        stage = StageConfig(epochs)
    else:
        named = next(stage for stage in config.stages if teacher in stage.teachers)
        basis = "auto" if named.basis == "former" else named.basis
        stage = replace(named, teacher=teacher, epochs=epochs, labels=True, fresh=True, basis=basis, near=False)
    return replace(config, stages=[stage], data=data.config, **own)


def steps_per_epoch(config: DistillConfig, data: CocoDataModule) -> int:
    """Return the number of optimizer steps of an epoch."""
    return count_steps(max(1, len(data.train) // data.config.batch_size), config.per_step)


def run_probe(config: DistillConfig, data: CocoDataModule, task: DistillationTask) -> float | None:
    """Train a task in place, on one device, without a trace on the disk, and return its AP on the held-out images.

    Args:
        config: see `probe_config`.
        data: of the probes.
        task: built from the config.

    Returns:
        AP, 0..1.

    Raises:
        Stopped: a signal ended the training.
    """
    with TemporaryDirectory() as folder, _silent():
        result = fit(config, RunFolder(Path(folder)), data, task)
    return result.metrics["AP"]


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the lines of a run, whose folder does not remain."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
