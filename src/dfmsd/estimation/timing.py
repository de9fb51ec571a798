"""Timing of a run's parts on this machine, in turns for a few seconds."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dfmsd.data.batching import collate
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.dataset import DetectionDataset
from dfmsd.detectors import Detector
from dfmsd.distillation.cache import Layout, TeacherCache
from dfmsd.distillation.lesson import Lesson
from dfmsd.distillation.passes import run_student, run_teacher
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.optimizer import build_optimizer
from dfmsd.engine.runconfig import COMPUTE_DTYPES
from dfmsd.estimation.flops import record_calls
from dfmsd.evaluation.evaluate import detect
from dfmsd.evaluation.flipping import detect_both_ways
from dfmsd.types import Batch, LevelSpec, Target
from dfmsd.utils.cachedir import cache_root
from dfmsd.utils.shapes import frame_of
from dfmsd.utils.store import DiskStore, RamStore, Store

Key = TypeVar("Key")
Call = Callable[[], object]
Within = Callable[[], AbstractContextManager[Any]]
SECONDS = 10.0
"""Default timing budget."""


def time_in_turns(
    parts: Mapping[Key, Call],
    seconds: float = SECONDS,
    *,
    clock: Callable[[], float] = time.perf_counter,
    wait: Call = lambda: None,
) -> dict[Key, float]:
    """Time calls in turns, so that a slow phase of the machine affects all of them equally.

    Args:
        parts: key -> call, in the order of execution.
        seconds: timing budget for all rounds; the first is a warm-up, and at least one round is timed.
        clock: returns seconds.
        wait: returns when the device has finished all its work.

    Returns:
        Key -> median in milliseconds.
    """
    start, last = clock(), 0.0
    rounds: list[dict[Key, float]] = []
    while len(rounds) < 2 or clock() - start + last <= seconds:
        begin = clock()
        times: dict[Key, float] = {}
        for key, run in parts.items():
            wait()
            before = clock()
            run()
            wait()
            times[key] = 1e3 * (clock() - before)
        rounds.append(times)
        last = clock() - begin
    return {key: median(times[key] for times in rounds[1:]) for key in parts}


def autocast_context(config: DistillConfig, device: torch.device) -> Within:
    """Return the autocast context of a run's networks."""
    dtype = COMPUTE_DTYPES[config.chosen_precision]
    return nullcontext if dtype == torch.float32 else lambda: torch.autocast(device.type, dtype)


def zero_lr_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build a run's optimizer with a learning rate of 0, which does all its work without changing the weights."""
    optimizer = build_optimizer(module, replace(optim, lr=1.0))  # `OptimConfig` rejects 0
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


@contextmanager
def step_parts(
    config: DistillConfig, task: DistillationTask, data: CocoDataModule, batch: Batch, device: torch.device
) -> Iterator[dict[str, Call]]:
    """Return the parts of a run as calls.

    ``student`` (forward, losses, backward), with a stage without labels ``pyramid`` (the student without its head),
    ``load`` (a batch of images loaded before), ``decode`` (a batch of new images), ``detect`` (a batch); for stage 1
    ``1/update`` (clipping and optimizer) and, with a teacher, ``1/loss`` (forward and backward of the criteria),
    ``1/teacher`` (features of all its teachers) and, with ``teacher_cache``, ``1/cached`` (features read from the
    cache) and ``1/stored`` (features computed and stored).

    Args:
        config: of the run.
        task: in training mode, on ``device``.
        data: of the run.
        batch: of the run, on ``device``.
        device: where to run.
    """
    within = autocast_context(config, device)
    parts: dict[str, Call] = {"student": _student(task, batch.images, batch.targets, within)}
    if not all(stage.labels for stage in task.stages):
        parts["pyramid"] = _student(task, batch.images, (), within)
    with ExitStack() as stack:
        for index in range(len(task.stages)):
            task.enter_stage(index, begins=False)
            used, stage = task.levels_in_use(index), f"{index + 1}/"
            if used:
                parts[stage + "teacher"] = _teachers(task.lessons, batch, within)
                parts[stage + "loss"] = _loss(task, batch, within)
            if used and config.teacher_cache:
                layouts = {teacher: cache_layout(config, levels, batch) for teacher, levels in used.items()}
                parts[stage + "stored"] = _stored(config, layouts, batch, within)
                parts[stage + "cached"] = _cached(config, layouts, batch, within, stack)
            parts[stage + "update"] = _update(config, task)
        task.enter_stage(0, begins=False)
        parts["load"], parts["decode"] = _loading(data)
        parts["detect"] = partial(detect, task.student, batch)
        yield parts


def labeling(labeler: Detector, data: CocoDataModule) -> Call:
    """Return a call that finds pseudo-labels in a batch, without loading it.

    Args:
        labeler: on its device.
        data: of the run.
    """
    config = data.config
    dataset = DetectionDataset(data.unlabeled, config.labeling_size)
    images = [dataset[index] for index in range(min(config.batch_size, len(dataset)))]
    batch = collate(images, config.labeling_size)
    return partial(detect_both_ways if config.pseudo.flip else detect, labeler, batch)


def cache_layout(config: DistillConfig, levels: Iterable[LevelSpec], batch: Batch) -> Layout:
    """Return how a cache stores these levels of a teacher."""
    frame = frame_of(batch.for_teachers)
    return Layout(tuple(levels), frame, config.teacher_dtype, config.teacher_cache_dtype)


def _student(task: DistillationTask, images: Tensor, targets: Sequence[Target], within: Within) -> Call:
    weights = [weight for weight in task.student.parameters() if weight.requires_grad]

    def run() -> None:
        with within():
            result = run_student(task.student, images, targets)
        outputs = [value for value in (result.losses or result.pyramid).values() if value.requires_grad]
        torch.autograd.grad(outputs, weights, [torch.ones_like(value) for value in outputs], allow_unused=True)

    return run


def _teachers(lessons: Iterable[Lesson], batch: Batch, within: Within) -> Call:
    def run() -> None:
        with within():
            for lesson in lessons:
                run_teacher(lesson.teacher, batch.for_teachers, queries=lesson.compares_queries)

    return run


def _loss(task: DistillationTask, batch: Batch, within: Within) -> Call:
    """Run the criteria on the features of a real step, backward to the student's pyramid and their own layers."""
    with within():
        calls = record_calls(task, batch, [lesson.criterion for lesson in task.lessons])
    inputs = [(*args[0].values(), *criterion.parameters()) for criterion, (args, _) in calls.items()]
    leaves = [leaf for tensors in inputs for leaf in tensors if leaf.requires_grad]

    def run() -> None:
        terms = [term for criterion, (args, kwargs) in calls.items() for term in criterion(*args, **kwargs).values()]
        torch.autograd.grad(torch.stack(terms).sum(), leaves, allow_unused=True)

    return run


def _cached(
    config: DistillConfig, layouts: Mapping[FrozenTeacher, Layout], batch: Batch, within: Within, stack: ExitStack
) -> Call:
    caches = {teacher: TeacherCache(_store(config, stack), layout) for teacher, layout in layouts.items()}
    return partial(_look_up, caches, batch, within)


def _stored(config: DistillConfig, layouts: Mapping[FrozenTeacher, Layout], batch: Batch, within: Within) -> Call:
    def run() -> None:
        with ExitStack() as stack:  # a new, empty store each time
            _cached(config, layouts, batch, within, stack)()

    return run


def _look_up(caches: Mapping[FrozenTeacher, TeacherCache], batch: Batch, within: Within) -> None:
    keys = [str(index) for index in range(len(batch.images))]
    with torch.no_grad(), within():
        for teacher, cache in caches.items():
            cache(batch.for_teachers, keys, teacher.features)


def _store(config: DistillConfig, stack: ExitStack) -> Store:
    if config.teacher_cache == "ram":
        return RamStore(sys.maxsize)
    root = cache_root()  # the disk of the run's own cache
    root.mkdir(parents=True, exist_ok=True)
    return DiskStore(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root))), sys.maxsize)


def _update(config: DistillConfig, task: DistillationTask) -> Call:
    """Clip and step with artificial gradients."""
    trained = nn.ModuleList([task.student, *(lesson.criterion for lesson in task.lessons)])
    optimizer = zero_lr_optimizer(trained, config.optim)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    gradients = [torch.ones_like(weight) for weight in weights]

    def run() -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        if config.optim.clip:
            nn.utils.clip_grad_norm_(weights, config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    return run


def _loading(data: CocoDataModule) -> tuple[Call, Call]:
    """Return calls that load a batch of images loaded before, and of new images, in this process."""
    collate = data.train_dataloader().collate_fn
    train = data.train

    def uncached(dataset: DetectionDataset, larger: DetectionDataset | None = None) -> DetectionDataset:
        return DetectionDataset(dataset.coco, dataset.image_size, dataset.augmentation, seed=data.seed, larger=larger)

    plain = uncached(train, train.larger and uncached(train.larger))

    def load(dataset: DetectionDataset) -> object:
        return collate([dataset[index] for index in data.example_indices])

    return partial(load, train), partial(load, plain)
