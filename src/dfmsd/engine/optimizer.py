"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import Lamb, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

from dfmsd.engine.optim import OptimConfig
from dfmsd.utils.coerce import AUTO

Group = dict[str, Any]
"""Parameters with their settings, as optimizers take them."""


class LateLamb(Lamb):
    """LAMB whose groups may start to train late.

    A group's first steps are corrected for moments that start at zero. LAMB counts the steps of a group whether its
    tensors have gradients or not, so that layers that join later, such as those of a second stage, would not be
    corrected, and their biases and norms move up to four times as far.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights, and count from 1 in groups without moments yet."""
        for group in self.param_groups:
            if not any(parameter in self.state for parameter in group["params"]):
                group.pop("step", None)
        loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
        return loss


def build_optimizer(
    module: nn.Module, optim: OptimConfig, backbone: Iterable[nn.Module] = (), late: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer of a module's parameters; biases and norms have no weight decay.

    Args:
        module: what is trained.
        optim: optimizer settings, without ``auto``, see `OptimConfig.resolved`.
        backbone: parts of it with a learning rate of their own; their groups are the last ones.
        late: parts of it that may get their first gradient later than others, each all at once.
    """
    assert optim.name != AUTO
    assert not isinstance(optim.lr, str)
    groups: list[Group] = param_groups_weight_decay(module, 1.0)  # 0 would put everything into one group
    for group in groups:
        if optim.name == "lamb":
            group["always_adapt"] = group["weight_decay"] > 0
        group["weight_decay"] *= optim.weight_decay
    for part in late:
        own, groups = _split(groups, [part])
        groups += own
    if optim.backbone_lr != 1:
        own, groups = _split(groups, backbone)
        groups += [{**group, "lr": optim.backbone_lr * optim.lr} for group in own]
    if optim.name == "lamb":
        return LateLamb(groups, lr=optim.lr, max_grad_norm=None)  # gradients are clipped before, whatever the optimizer
    if optim.name == "adamw":
        # not fused=True: on a CPU it ignores that weights and gradients differ in memory layout (torch 2.14)
        return torch.optim.AdamW(groups, lr=optim.lr)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9)


def _split(groups: Iterable[Group], parts: Iterable[nn.Module]) -> tuple[list[Group], list[Group]]:
    """Return the groups of the parameters inside and outside of some modules."""
    inside = {parameter for part in parts for parameter in part.parameters()}
    own = [{**group, "params": [p for p in group["params"] if p in inside]} for group in groups]
    rest = [{**group, "params": [p for p in group["params"] if p not in inside]} for group in groups]
    return [group for group in own if group["params"]], [group for group in rest if group["params"]]


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Remove what an optimizer has learned of the steps so far: moments, and the number of steps."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)  # where LAMB counts
