"""Optimizers against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.optimizer import build_optimizer, forget_steps


def layer(weight: float) -> nn.Linear:
    made = nn.Linear(2, 2, bias=False)
    nn.init.constant_(made.weight, weight)
    return made


@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
def test_lamb_moves_each_layer_by_its_own_size(weight: float) -> None:
    """Without decay by weights the first step of Adam is 1 in each weight, so LAMB's is lr times the weights' norm."""
    small, large = layer(weight), layer(10 * weight)
    optimizer = build_optimizer(nn.ModuleList([small, large]), OptimConfig("lamb", lr=0.1, weight_decay=1e-9))
    for part in (small, large):
        part.weight.grad = torch.full((2, 2), 1e6)
    optimizer.step()
    torch.testing.assert_close(small.weight.detach(), torch.full((2, 2), 0.9 * weight))
    torch.testing.assert_close(large.weight.detach(), torch.full((2, 2), 9.0 * weight))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_lamb_leaves_clipping_to_the_trainer(scale: float) -> None:
    """Its own limit would cut large gradients, and so the moments of the steps after them."""
    module = layer(1.0)
    optimizer = build_optimizer(module, OptimConfig("lamb", lr=0.1))
    module.weight.grad = torch.full((2, 2), scale)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[module.weight]["exp_avg"], torch.full((2, 2), 0.1 * scale))


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
def test_an_optimizer_that_forgets_its_steps_is_as_new(name: str) -> None:
    used, new = layer(1.0), layer(1.0)
    config = OptimConfig(name, lr=0.1)
    optimizer, fresh = build_optimizer(used, config), build_optimizer(new, config)
    for step in range(4):
        if step == 3:
            forget_steps(optimizer)
            new.load_state_dict(used.state_dict())
        used.weight.grad = torch.full((2, 2), 4.0 - step)
        optimizer.step()
    new.weight.grad = torch.ones(2, 2)
    fresh.step()
    assert torch.equal(used.weight, new.weight)
