"""Time and peak memory of a training step of each method, measured in turns."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.distillation.balance import INTERVAL
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.teachercache import open_caches, plan_caches
from dfmsd.estimation.estimator import first_batch
from dfmsd.estimation.timing import Within, autocast_context, time_in_turns, zero_lr_optimizer
from dfmsd.types import Batch
from dfmsd.utils.device import default_device, synchronize

KINETO = "KINETO_LOG_LEVEL"
SECONDS = 6.0
"""Timing budget per method and stage."""


class StepCost(NamedTuple):
    """Cost of a training step."""

    step_ms: float
    """Mean over the epochs of all stages; teacher features are read from the cache if there is one. One step of
    `INTERVAL` measures the gradients of a balance."""
    peak_bytes: int
    """Weights, teachers, optimizer and the peak allocation of a step of any stage, computing the teacher features."""


Tasks = Mapping[str, tuple[DistillConfig, DistillationTask]]


def measure_step_costs(tasks: Tasks, data: CocoDataModule, seconds: float = SECONDS) -> dict[str, StepCost]:
    """Measure a training step of each method, in turns, so that a slow phase of the machine affects all equally.

    Args:
        tasks: method -> config and task; student and teachers may be shared. The student's weights do not change.
        data: provides the batch; with digests if the teachers have caches.
        seconds: timing budget per method and stage.
    """
    target = default_device()
    batch = first_batch(data).to(target)
    steps: dict[tuple[str, int, bool], Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    for name, (config, task) in tasks.items():
        stages = _steps(config, task, batch, target)
        peaks[name] = _peak(stages, task, target)
        plan = plan_caches(task, config, len(data.train))
        if plan is not None:
            open_caches(plan)
        for index, stage in enumerate(stages):
            for measures in (False, True) if _balanced(task, index) else (False,):
                steps[name, index, measures] = partial(stage, cached=plan is not None, measures=measures)
    ms = time_in_turns(steps, seconds * len(steps), wait=partial(synchronize, target))

    def mean_ms(name: str, index: int) -> float:
        plain = ms[name, index, False]
        return plain + (ms.get((name, index, True), plain) - plain) / INTERVAL

    return {
        name: StepCost(_mean_step(config, [mean_ms(name, index) for index in _stages(task)]), peaks[name])
        for name, (config, task) in tasks.items()
    }


def measure_peaks(tasks: Tasks, data: CocoDataModule) -> dict[str, int]:
    """Measure the peak memory of two training steps of each stage of each method, see `StepCost`.

    Args:
        tasks: method -> config and task; student and teachers may be shared. The student's weights do not change.
        data: provides the batch.
    """
    target = default_device()
    batch = first_batch(data).to(target)
    return {name: _peak(_steps(config, task, batch, target), task, target) for name, (config, task) in tasks.items()}


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak number of bytes of tensors allocated by ``call`` on the CPU.

    Exact and reproducible: PyTorch's allocator reports every allocation and release to the profiler. Tensors that
    exist before the call are not counted, nor is scratch memory allocated by oneDNN itself.
    """
    with _quiet_kineto(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    records = [event["args"] for event in events if event["name"] == "[memory]"]
    before = records[0]["Total Allocated"] - records[0]["Bytes"]
    return int(max(record["Total Allocated"] for record in records) - before)


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch threads within a block."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Silence the start and stop messages of the profiler."""
    former = os.environ.get(KINETO)
    os.environ[KINETO] = former or "99"
    try:
        yield
    finally:
        if former is None:
            del os.environ[KINETO]
        else:
            os.environ[KINETO] = former


def _stages(task: DistillationTask) -> range:
    return range(len(task.stages))


def _balanced(task: DistillationTask, stage: int) -> bool:
    return any(lesson.balance is not None for lesson in task.lessons_of(stage))


def _steps(
    config: DistillConfig, task: DistillationTask, batch: Batch, target: torch.device
) -> list[Callable[..., None]]:
    """Return a training step of each stage."""
    task.to(target, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for teacher in task.every_teacher:
        teacher.to(target)
    within = autocast_context(config, target)
    return [
        partial(_step, task, stage, zero_lr_optimizer(task.trainable, config.optim), batch, within, config.optim.clip)
        for stage in _stages(task)
    ]


def _step(
    task: DistillationTask,
    stage: int,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    within: Within,
    clip: float,
    *,
    cached: bool = False,
    measures: bool = True,
) -> None:
    task.stage = stage  # not enter_stage, which would clear the caches of the other stages
    for lesson in task.lessons:
        if lesson.balance is not None:
            lesson.balance.calls = 0 if measures else lesson.balance.first
    with within():
        named = task(batch.images, batch.targets, batch.keys if cached else (), batch.larger)
    torch.stack(list(named.values())).sum().backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), clip)
    optimizer.step()
    optimizer.zero_grad()


def _peak(steps: Sequence[Callable[..., None]], task: DistillationTask, target: torch.device) -> int:
    return max(_peak_of(step, target) for step in steps) + _resident(task)


def _peak_of(step: Callable[[], None], target: torch.device) -> int:
    def twice() -> None:  # the first step allocates the optimizer state, which stays
        step()
        step()

    if target.type != "cuda":
        return peak_bytes(twice)
    torch.cuda.reset_peak_memory_stats(target)
    before = torch.cuda.memory_allocated(target)
    twice()
    return torch.cuda.max_memory_allocated(target) - before


def _resident(task: DistillationTask) -> int:
    teachers = {id(teacher.detector): teacher.detector for teacher in task.every_teacher}
    modules = [task.trainable, *teachers.values()]
    return sum(_nbytes(itertools.chain(module.parameters(), module.buffers())) for module in modules)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _mean_step(config: DistillConfig, ms: Sequence[float]) -> float:
    return sum(stage.epochs * time for stage, time in zip(config.stages, ms, strict=True)) / config.epochs
