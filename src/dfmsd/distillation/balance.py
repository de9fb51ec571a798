"""Gradient-norm loss balancing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd.types import FeaturePyramid
from dfmsd.utils.distributed import process_sum

BalanceBy = Literal["term", "loss"]
BALANCE = "balance"
"""Name of the factors among the diagnostics of a task."""
DEFAULT_BALANCE = 2.0
"""Default norm of a teacher's gradient relative to the task's."""
WHOLE = "loss"
"""Name of the only group of a loss that is balanced as a whole."""
FIRST_STEPS = 20
"""Steps at the start of a stage that are all measured."""
INTERVAL = 10
"""Steps between two later measurements."""
SMOOTHING = 0.1
"""Share of a new measurement in the running norms, once there are enough of them."""


def balanced_groups(terms: Sequence[str], by: BalanceBy) -> dict[str, str]:
    """Map terms to the groups that share a factor: each term alone, or all of them, which keeps their ratios."""
    return {term: term if by == "term" else WHOLE for term in terms}


def term_groups(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum terms over the levels: ``mask/p3``, ``mask/p4`` -> ``mask``."""
    groups: dict[str, Tensor] = {}
    for name, value in terms.items():
        group = name.partition("/")[0]
        groups[group] = groups[group] + value if group in groups else value
    return groups


def is_balance(name: str) -> bool:
    """Return whether a logged value is a factor: ``balance/mask``, ``T2.balance/mask``."""
    return name.partition("/")[0].rpartition(".")[2] == BALANCE


def gradient_norm(value: Tensor, pyramid: FeaturePyramid) -> Tensor:
    """Return the Euclidean norm of a scalar's gradient with respect to a whole pyramid; the graph is kept."""
    gradients = torch.autograd.grad(value, list(pyramid.values()), retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else value.new_zeros(())


class GradientBalance(nn.Module):
    r"""Scale groups of distillation terms by their gradients on the student's pyramid.

    The factor of a group is $r \cdot \lVert \nabla L_{task} \rVert / \lVert \nabla L_{group} \rVert$. Both norms
    change during training - an untrained head passes on little gradient, and the group's falls as the student follows
    its teacher - so they are measured in the first calls and at regular intervals after, and averaged: over all
    measurements at first, exponentially later. They are saved with the run. With several processes the gradients of all
    their batches are measured. No call waits for the device: calls are counted on the host, and norms stay on the
    device.

    Args:
        groups: term -> group that it belongs to, see `balanced_groups`; other terms are not scaled.
        ratio: $r$, the target norm of each group's gradient relative to the task's; > 0.
        first: number of calls at the start that are all measured.
        interval: calls between two later measurements.

    Attributes:
        calls: number of calls so far.
    """

    norms: Tensor

    def __init__(
        self, groups: Mapping[str, str], ratio: float, first: int = FIRST_STEPS, interval: int = INTERVAL
    ) -> None:
        super().__init__()
        self.group_of = dict(groups)
        self.groups = tuple(dict.fromkeys(groups.values()))
        self.ratio = ratio
        self.first = first
        self.interval = interval
        self.calls = 0
        self.register_buffer("norms", torch.zeros(len(self.groups) + 1))  # the task comes first

    def factors(self) -> dict[str, Tensor]:
        """Return the current factor of each group; 1 before the first call and without a gradient."""
        task, norms = self.norms[0], self.norms[1:]
        return dict(zip(self.groups, torch.where(norms > 0, self.ratio * task / norms, 1.0).unbind(), strict=True))

    @property
    def measures(self) -> bool:
        """Whether the next call measures."""
        return self.calls < self.first or (self.calls - self.first) % self.interval == self.interval - 1

    def forward(
        self, terms: dict[str, Tensor], task: Tensor, pyramid: FeaturePyramid, labeled: FeaturePyramid | None = None
    ) -> dict[str, Tensor]:
        """Return the scaled terms; measure their gradients first if it is time to.

        Args:
            terms: ``<group>/<level>`` -> scalar.
            task: the detector's own loss, a scalar.
            pyramid: the student's pyramid, part of the terms' graph.
            labeled: the pyramid of the images that the task's loss is computed on, part of its graph; ``pyramid`` by
                default.
        """
        if self.measures:
            groups = {name: self._group(name) for name in terms}
            grouped = term_groups({f"{group}/{name}": terms[name] for name, group in groups.items() if group})
            norms = [gradient_norm(task, pyramid if labeled is None else labeled)]
            norms += [gradient_norm(grouped[name], pyramid) for name in self.groups]
            measured = process_sum(torch.stack(norms).square()).sqrt().to(self.norms)
            measured = torch.where(measured.isfinite(), measured, self.norms)  # an overflow must not stay forever
            self.norms.lerp_(measured, max(SMOOTHING, 1 / (self.calls + 1)))
        self.calls += 1
        factors = self.factors()
        return {name: factors.get(self._group(name) or "", 1.0) * value for name, value in terms.items()}

    def get_extra_state(self) -> int:
        """Return the number of calls, for a checkpoint."""
        return self.calls

    def set_extra_state(self, state: int) -> None:
        """Load the number of calls."""
        self.calls = state

    def _group(self, name: str) -> str | None:
        return self.group_of.get(name.partition("/")[0])
