"""Weights of the distillation terms by measurement instead of by guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd.types import FeaturePyramid
from dfmsd.utils.distributed import process_sum

BalanceBy = Literal["term", "loss"]
WHOLE = "loss"
"""Name of the one group of a loss that is balanced as a whole."""
MEASURED_STEPS = 20
"""Steps at the beginning of a stage in which the norms are measured."""


def balanced_groups(terms: Sequence[str], by: BalanceBy) -> dict[str, str]:
    """Map terms to what gets a factor of its own: each term, or the whole loss, whose terms keep their ratios."""
    return {term: term if by == "term" else WHOLE for term in terms}


def term_groups(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum terms over the levels: ``mask/p3``, ``mask/p4`` -> ``mask``."""
    groups: dict[str, Tensor] = {}
    for name, value in terms.items():
        group = name.partition("/")[0]
        groups[group] = groups[group] + value if group in groups else value
    return groups


def gradient_norm(value: Tensor, pyramid: FeaturePyramid) -> Tensor:
    """Euclidean norm of the gradient of a scalar on a whole pyramid; the graph is kept."""
    gradients = torch.autograd.grad(value, list(pyramid.values()), retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else value.new_zeros(())


class GradientBalance(nn.Module):
    """Scale each group of distillation terms to ``ratio`` times the task's gradient on the student's pyramid.

    During the first ``batches`` calls the norms of task and terms are averaged; from then on the factors
    ``ratio * norm(task) / norm(group)`` stay as they are. The state is saved with the run. No call waits for the
    device: the calls are counted on the host, and the norms never leave the device. Several processes measure the
    gradient of all their batches together.

    Args:
        groups: term -> the group that it belongs to, see `balanced_groups`; a term without one stays as it is.
        ratio: wanted size of each group's gradient, relative to the task's; > 0.
        batches: calls that are measured.
    """

    sums: Tensor

    def __init__(self, groups: Mapping[str, str], ratio: float, batches: int = MEASURED_STEPS) -> None:
        super().__init__()
        self.group_of = dict(groups)
        self.groups = tuple(dict.fromkeys(groups.values()))
        self.ratio = ratio
        self.batches = batches
        self.count = 0
        self.register_buffer("sums", torch.zeros(len(self.groups) + 1))  # task first

    def factors(self) -> dict[str, float]:
        """Factor of each group, as measured so far; 1 before the first call and for one without gradient."""
        return dict(zip(self.groups, self._scales().tolist(), strict=True))

    @property
    def settled(self) -> bool:
        """Whether the measurement is over."""
        return self.count >= self.batches

    def forward(
        self, terms: dict[str, Tensor], task: Tensor, pyramid: FeaturePyramid, labeled: FeaturePyramid | None = None
    ) -> dict[str, Tensor]:
        """Scale the terms, and measure while that goes on.

        Args:
            terms: ``<group>/<level>`` -> scalar.
            task: the detector's own loss, a scalar.
            pyramid: the student's, part of the terms' graph.
            labeled: the same of the images that the task's loss is made of, part of its graph; the whole by default.
        """
        if not self.settled:
            known = {name: self._group(name) for name in terms}
            grouped = term_groups({f"{group}/{name}": terms[name] for name, group in known.items() if group})
            norms = [gradient_norm(task, pyramid if labeled is None else labeled)]
            norms += [gradient_norm(grouped[name], pyramid) for name in self.groups]
            self.sums += process_sum(torch.stack(norms).square()).sqrt().to(self.sums)
            self.count += 1
        scales = dict(zip(self.groups, self._scales().unbind(), strict=True))
        return {name: scales.get(self._group(name) or "", 1.0) * value for name, value in terms.items()}

    def get_extra_state(self) -> int:
        """Save the number of calls that were measured."""
        return self.count

    def set_extra_state(self, state: int) -> None:
        """Go on counting where a saved run stopped."""
        self.count = state

    def _group(self, name: str) -> str | None:
        return self.group_of.get(name.partition("/")[0])

    def _scales(self) -> Tensor:
        task, norms = self.sums[0], self.sums[1:]
        return torch.where(norms > 0, self.ratio * task / norms, 1.0)
