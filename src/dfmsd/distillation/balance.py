"""Gradient-norm loss balancing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd.types import FeaturePyramid
from dfmsd.utils.distributed import process_sum

BALANCE = "balance"
"""Name of the factor among the diagnostics of a task."""
DEFAULT_BALANCE = 2.0
"""Default norm of a teacher's gradient relative to that of the task loss."""
BalanceSchedule = Literal["cosine", "constant"]
FIRST_STEPS = 20
"""Steps at the start of a stage that are all measured."""
INTERVAL = 10
"""Steps between two later measurements."""
SMOOTHING = 0.1
"""Share of a new measurement in the running norms, once there are enough of them."""

HALF_SCALE = 2.0**12
"""Factor of a loss that is differentiated in float16, whose numbers end at 6e-8. A mean over a large level has
gradients of 1e-8; with the factor those from 1.5e-11 to 16 can be measured."""


def term_groups(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum terms over the levels: ``mask/p3``, ``mask/p4`` -> ``mask``."""
    groups: dict[str, Tensor] = {}
    for name, value in terms.items():
        group = name.partition("/")[0]
        groups[group] = groups[group] + value if group in groups else value
    return groups


def balance_share(progress: float, schedule: BalanceSchedule) -> float:
    r"""Return the share of the target ratio that a teacher has left: $(1 + \cos \pi p) / 2$, or always 1.

    A constant ratio makes the teacher's gradient as large at the end as it was at the start, so that its features hold
    back a student that has become good itself.

    Args:
        progress: $p$, the part of the run that is over, 0..1.
        schedule: ``cosine`` or ``constant``.

    Source: reconstruction. Compare Jafari et al., "Annealing Knowledge Distillation" (2021), with a linear fall, and
    Cho and Hariharan, "On the Efficacy of Knowledge Distillation" (2019), who stop it early.
    """
    return (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1.0


def is_balance(name: str) -> bool:
    """Return whether a logged value is a factor: ``balance``, ``T2.balance``."""
    return name.rpartition(".")[2] == BALANCE


def gradient_norm(value: Tensor, pyramid: FeaturePyramid) -> Tensor:
    """Return the Euclidean norm of a scalar's gradient with respect to a whole pyramid; the graph is kept."""
    levels = list(pyramid.values())
    scale = HALF_SCALE if any(level.dtype == torch.float16 for level in levels) else 1.0
    gradients = torch.autograd.grad(scale * value.float(), levels, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() / scale if squares else value.new_zeros(())


class GradientBalance(nn.Module):
    r"""Scale the distillation terms of a teacher by their gradient on the student's pyramid.

    The factor is $s r \cdot \lVert \nabla L_{task} \rVert / \lVert \nabla L \rVert$, where $L_{task}$ is the detector's
    own loss, $L$ the sum of the terms, whose ratios stay the same, and $s$ the share that the schedule leaves. Both
    norms change during training: an untrained head passes little gradient on, and the gradient of the terms shrinks as
    the student comes closer to its teacher. So they are measured in each of the first calls and at regular intervals
    afterwards, and averaged: over all measurements at first, exponentially later. They are saved with the run. With
    several processes the gradients of all their batches are measured. No call waits for the device: calls are counted
    on the host, and norms stay on the device.

    Args:
        terms: names of the terms that are scaled, without level, such as ``mask``; at least one.
        ratio: $r$, the target norm of their gradient relative to that of the task loss; > 0.
        first: number of calls at the start that are all measured.
        interval: calls between two later measurements.

    Attributes:
        calls: number of calls so far.
        share: $s$, see `balance_share`; 1 unless it is set before a call.

    Compare the adaptive weight of VQGAN (arXiv 2012.09841), which has no target ratio and does not average.
    """

    norms: Tensor

    def __init__(self, terms: Sequence[str], ratio: float, first: int = FIRST_STEPS, interval: int = INTERVAL) -> None:
        super().__init__()
        self.terms = frozenset(terms)
        self.ratio = ratio
        self.first = first
        self.interval = interval
        self.calls = 0
        self.share = 1.0
        self.register_buffer("norms", torch.zeros(2))  # of the task and of the terms

    @property
    def factor(self) -> Tensor:
        """The current factor, a scalar; the share alone before the first call and without a gradient."""
        task, distillation = self.norms.unbind()
        return self.share * torch.where(distillation > 0, self.ratio * task / distillation, 1.0)

    @property
    def measures(self) -> bool:
        """Whether the next call measures."""
        return self.calls < self.first or (self.calls - self.first) % self.interval == self.interval - 1

    def forward(
        self, terms: dict[str, Tensor], task: Tensor, pyramid: FeaturePyramid, labeled: FeaturePyramid | None = None
    ) -> dict[str, Tensor]:
        """Return the terms, scaled; measure their gradient first if it is time to.

        Args:
            terms: ``<term>/<level>`` -> scalar.
            task: the detector's own loss, a scalar.
            pyramid: the student's pyramid, part of the terms' graph.
            labeled: the pyramid of the images that the task loss is computed on, part of its graph; ``pyramid`` by
                default.
        """
        scaled = {name: value for name, value in terms.items() if name.partition("/")[0] in self.terms}
        if self.measures:
            total = sum(scaled.values(), start=task.new_zeros(()))
            norms = [gradient_norm(task, pyramid if labeled is None else labeled), gradient_norm(total, pyramid)]
            measured = process_sum(torch.stack(norms).square()).sqrt().to(self.norms)
            # an overflow would stay in the average forever
            measured = torch.where(measured.isfinite(), measured, self.norms)
            self.norms.lerp_(measured, max(SMOOTHING, 1 / (self.calls + 1)))
        self.calls += 1
        factor = self.factor
        return terms | {name: factor * value for name, value in scaled.items()}

    def get_extra_state(self) -> int:
        """Return the number of calls, for a checkpoint."""
        return self.calls

    def set_extra_state(self, state: int) -> None:
        """Load the number of calls."""
        self.calls = state
