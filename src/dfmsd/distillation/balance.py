"""Gradient-norm loss balancing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd.types import FeaturePyramid
from dfmsd.utils.distributed import process_sum

BalanceBy = Literal["term", "loss"]
WHOLE = "loss"
"""Name of the only group of a loss that is balanced as a whole."""
MEASURED_STEPS = 20
"""Steps at the start of a stage in which the gradient norms are measured."""


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


def gradient_norm(value: Tensor, pyramid: FeaturePyramid) -> Tensor:
    """Return the Euclidean norm of a scalar's gradient with respect to a whole pyramid; the graph is kept."""
    gradients = torch.autograd.grad(value, list(pyramid.values()), retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else value.new_zeros(())


class GradientBalance(nn.Module):
    r"""Scale groups of distillation terms by their gradients on the student's pyramid.

    The factor of a group is $r \cdot \lVert \nabla L_{task} \rVert / \lVert \nabla L_{group} \rVert$. The norms are
    averaged over the first ``batches`` calls and constant afterwards; they are saved with the run. With several
    processes the gradients of all their batches are measured. No call waits for the device: calls are counted on the
    host, and norms stay on the device.

    Args:
        groups: term -> group that it belongs to, see `balanced_groups`; other terms are not scaled.
        ratio: $r$, the target norm of each group's gradient relative to the task's; > 0.
        batches: number of calls to measure.

    Attributes:
        count: number of calls measured so far.
    """

    sums: Tensor

    def __init__(self, groups: Mapping[str, str], ratio: float, batches: int = MEASURED_STEPS) -> None:
        super().__init__()
        self.group_of = dict(groups)
        self.groups = tuple(dict.fromkeys(groups.values()))
        self.ratio = ratio
        self.batches = batches
        self.count = 0
        self.register_buffer("sums", torch.zeros(len(self.groups) + 1))  # the task comes first

    def factors(self) -> dict[str, float]:
        """Return the factor of each group as measured so far; 1 before the first call and without a gradient."""
        return dict(zip(self.groups, self._scales().tolist(), strict=True))

    @property
    def settled(self) -> bool:
        """Whether the measurement is finished."""
        return self.count >= self.batches

    def forward(
        self, terms: dict[str, Tensor], task: Tensor, pyramid: FeaturePyramid, labeled: FeaturePyramid | None = None
    ) -> dict[str, Tensor]:
        """Return the scaled terms, and measure their gradients until settled.

        Args:
            terms: ``<group>/<level>`` -> scalar.
            task: the detector's own loss, a scalar.
            pyramid: the student's pyramid, part of the terms' graph.
            labeled: the pyramid of the images that the task's loss is computed on, part of its graph; ``pyramid`` by
                default.
        """
        if not self.settled:
            groups = {name: self._group(name) for name in terms}
            grouped = term_groups({f"{group}/{name}": terms[name] for name, group in groups.items() if group})
            norms = [gradient_norm(task, pyramid if labeled is None else labeled)]
            norms += [gradient_norm(grouped[name], pyramid) for name in self.groups]
            self.sums += process_sum(torch.stack(norms).square()).sqrt().to(self.sums)
            self.count += 1
        scales = dict(zip(self.groups, self._scales().unbind(), strict=True))
        return {name: scales.get(self._group(name) or "", 1.0) * value for name, value in terms.items()}

    def get_extra_state(self) -> int:
        """Return the number of calls measured, for a checkpoint."""
        return self.count

    def set_extra_state(self, state: int) -> None:
        """Load the number of calls measured."""
        self.count = state

    def _group(self, name: str) -> str | None:
        return self.group_of.get(name.partition("/")[0])

    def _scales(self) -> Tensor:
        task, norms = self.sums[0], self.sums[1:]
        return torch.where(norms > 0, self.ratio * task / norms, 1.0)
