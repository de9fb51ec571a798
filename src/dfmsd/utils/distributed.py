"""Multi-process training: sums over processes, which make a step equal to one on the whole batch, and error handling.

"Statistics" are quantities that a loss computes over the batch, such as means and counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dfmsd.errors import DfmsdError

LOST_PROCESS = ("by peer", "remote process exited", "by remote peer")
"""Parts of the messages of gloo and NCCL about a process that has ended; those of NCCL are from public reports."""


RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Variables in which Lightning looks for the number of this process, in its order."""


class _Step:
    shared = False
    statistics = False


@contextmanager
def shared_step(*, statistics: bool = True) -> Iterator[None]:
    """Enable sums over processes inside a training step that all processes of the run execute.

    Without a process group, or with a single process, nothing changes.

    Args:
        statistics: Whether `statistics_sum` sums too; otherwise each process uses the statistics of its own batch.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    _Step.shared, _Step.statistics = several, several and statistics
    try:
        yield
    finally:
        _Step.shared = _Step.statistics = False


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn the errors of gloo and NCCL about a process that has ended into a one-line message.

    Raises:
        DfmsdError: Another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST_PROCESS):
            raise
        raise DfmsdError("another process of this run has ended; fix the error it reported, then resume it") from error


def is_first_process() -> bool:
    """Return whether this process writes and reports: rank 0, also before processes are started."""
    from pytorch_lightning.utilities import rank_zero_only  # losses import this module without Lightning

    return getattr(rank_zero_only, "rank", 0) == 0


def check_rank(processes: tuple[int, int]) -> None:
    """Refuse the number of a process among several that no launcher has started: it is left over from another job.

    Args:
        processes: Processes per machine, and machines, of the run.

    Raises:
        DfmsdError: Names the environment variable.
    """
    name = next((name for name in RANKS if name in os.environ), None)
    rank = os.environ.get(name or "", "0")
    if rank == "0":
        return
    started = "MASTER_ADDR" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if math.prod(processes) == 1 and not started:
        raise DfmsdError(
            f"the environment variable {name} is {rank}, as in one of several processes, but this run has one: unset "
            f"{name} if another job left it behind, or start the run with torchrun, or with `devices` and `num_nodes`"
        )


def check_process_counts(teachers: Mapping[str, tuple[int, int]], student: tuple[int, int]) -> None:
    """Check that trainings that follow each other use equally many processes.

    The processes that one training starts take part in all that follow, so only the first ones may use a single one.

    Args:
        teachers: Teacher -> processes per machine and machines, for teachers that still have to be trained, in order.
        student: Processes per machine and machines of the student's training.

    Raises:
        DfmsdError: A training has several processes, and the next one another number.
    """
    for (name, current), following in zip(teachers.items(), [*teachers.values(), student][1:], strict=True):
        if current not in ((1, 1), following):
            raise DfmsdError(
                f"teacher {name} would be trained in {math.prod(current)} processes and the next model in "
                f"{math.prod(following)}; give both the same devices and num_nodes, or train the teacher first: "
                f"dfmsd train --config {name}"
            )


def process_sum(value: Tensor) -> Tensor:
    """Sum over the processes inside a `shared_step`, without gradient."""
    return _all_reduced(value.detach()) if _Step.shared else value


def statistics_sum(value: Tensor) -> Tensor:
    """Sum over the processes if they share statistics.

    The gradient is that of the sum of all processes' losses, so the mean over processes that DDP computes is the
    gradient of the mean loss.
    """
    return _Sum.apply(value) if _Step.statistics else value


def statistics_world_size() -> int:
    """Return the number of processes that `statistics_sum` sums over."""
    return dist.get_world_size() if _Step.statistics else 1


def mean_count(count: Tensor) -> Tensor:
    """Return the mean number of objects per process, with at least one in total, to normalize sums over objects."""
    return statistics_sum(count).clamp(min=1) / statistics_world_size()


def broadcast_from_first(value: Tensor) -> Tensor:
    """Return the value of the first process if the processes share statistics, without gradient."""
    value = value.detach()
    if _Step.statistics:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.broadcast(value, src=0)
    return value


@torch.no_grad()
def copy_from_first(module: nn.Module) -> None:
    """Overwrite the parameters and buffers of a module with those of the first process, in place."""
    if dist.is_available() and dist.is_initialized():
        for value in (*module.parameters(), *module.buffers()):
            dist.broadcast(value, src=0)


class _Sum(torch.autograd.Function):
    """Differentiable all-reduce; that of ``torch.distributed.nn`` is deprecated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _all_reduced(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(value: Tensor) -> Tensor:
    value = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value)
    return value
