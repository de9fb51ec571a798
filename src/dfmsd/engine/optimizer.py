"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.optim import Lamb, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

from dfmsd.engine.optim import OptimConfig
from dfmsd.utils.coerce import AUTO


def build_optimizer(module: nn.Module, optim: OptimConfig, backbone: Iterable[nn.Module] = ()) -> torch.optim.Optimizer:
    """Build the optimizer of a module's parameters; biases and norms have no weight decay.

    Args:
        module: what is trained.
        optim: optimizer settings, without ``auto``, see `OptimConfig.resolved`.
        backbone: parts of it with a learning rate of their own; their groups are the last ones.
    """
    assert optim.name != AUTO
    assert not isinstance(optim.lr, str)
    groups = param_groups_weight_decay(module, optim.weight_decay)
    if optim.backbone_lr != 1:
        inside = {parameter for part in backbone for parameter in part.parameters()}
        rest = [{**group, "params": [p for p in group["params"] if p not in inside]} for group in groups]
        own = [{**group, "params": [p for p in group["params"] if p in inside]} for group in groups]
        groups = [*rest, *({**group, "lr": optim.backbone_lr * optim.lr} for group in own)]
    if optim.name == "lamb":
        return Lamb(groups, lr=optim.lr, max_grad_norm=None)  # gradients are clipped before, whatever the optimizer
    if optim.name == "adamw":
        # not fused=True: on a CPU it ignores that weights and gradients differ in memory layout (torch 2.14)
        return torch.optim.AdamW(groups, lr=optim.lr)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9)


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Remove what an optimizer has learned of the steps so far: moments, and the number of steps."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)  # where LAMB counts
