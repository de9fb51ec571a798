"""The processes of a run: sums that make their step that of one process with all batches; what else ties them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dfmsd.errors import DfmsdError

LOST = ("by peer", "remote process exited", "by remote peer")
"""What gloo and NCCL say of a process that is no more; NCCL's words are those of public reports, not of a test."""


class _Step:
    shared = False
    statistics = False


@contextmanager
def shared_step(*, statistics: bool = True) -> Iterator[None]:
    """Every process of the run is in the same training step here, so that sums over them are possible.

    Without a process group, or with one process, nothing changes.

    Args:
        statistics: whether `statistics_sum` sums too; otherwise each process has the statistics of its own batch.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    _Step.shared, _Step.statistics = several, several and statistics
    try:
        yield
    finally:
        _Step.shared = _Step.statistics = False


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn the words of gloo and NCCL for a process that is no more into one line.

    Raises:
        DfmsdError: another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST):
            raise
        raise DfmsdError(
            "another process of this run has ended; mend what it said, then go on with --resume"
        ) from error


def is_first_process() -> bool:
    """Return whether this process writes and reports: rank 0, also before processes are started."""
    from pytorch_lightning.utilities import rank_zero_only  # losses import this module without Lightning

    return getattr(rank_zero_only, "rank", 0) == 0


def check_process_counts(teachers: Mapping[str, tuple[int, int]], student: tuple[int, int]) -> None:
    """Refuse trainings of unlike numbers: the processes that one of them starts take part in all that follow.

    Args:
        teachers: reference -> processes on each machine, and machines, of those that are still to be trained, in order.
        student: its own.

    Raises:
        DfmsdError: one has several processes, and the next one another number of them.
    """
    for (name, own), following in zip(teachers.items(), [*teachers.values(), student][1:], strict=True):
        if own not in ((1, 1), following):
            raise DfmsdError(
                f"teacher {name}: it would be trained in {math.prod(own)} processes and what follows in "
                f"{math.prod(following)}; give both the same devices and num_nodes, or train it before: "
                f"dfmsd train --config {name}"
            )


def process_sum(value: Tensor) -> Tensor:
    """Sum over the processes of a `shared_step`, without a gradient."""
    return _all_reduced(value.detach()) if _Step.shared else value


def statistics_sum(value: Tensor) -> Tensor:
    """Sum over the processes whose statistics are one.

    Its gradient is that of the sum of all processes' losses: the mean over processes that DDP takes of it is then the
    gradient of the mean loss.
    """
    return _Sum.apply(value) if _Step.statistics else value


def statistics_world_size() -> int:
    """Tell over how many processes `statistics_sum` sums."""
    return dist.get_world_size() if _Step.statistics else 1


def mean_count(count: Tensor) -> Tensor:
    """Give how many objects a process has in the mean, at least one in all: what sums over them are divided by."""
    return statistics_sum(count).clamp(min=1) / statistics_world_size()


def broadcast_from_first(value: Tensor) -> Tensor:
    """Give the first process's value to all whose statistics are one, without a gradient."""
    value = value.detach()
    if _Step.statistics:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.broadcast(value, src=0)
    return value


class _Sum(torch.autograd.Function):
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
