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


@pytest.mark.parametrize("decay", [1e-9, 0])
@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
def test_lamb_moves_each_layer_by_its_own_size(weight: float, decay: float) -> None:
    """Without decay by weights the first step of Adam is 1 in each weight, so LAMB's is lr times the weights' norm."""
    small, large = layer(weight), layer(10 * weight)
    optimizer = build_optimizer(nn.ModuleList([small, large]), OptimConfig("lamb", lr=0.1, weight_decay=decay))
    for part in (small, large):
        part.weight.grad = torch.full((2, 2), 1e6)
    optimizer.step()
    torch.testing.assert_close(small.weight.detach(), torch.full((2, 2), 0.9 * weight))
    torch.testing.assert_close(large.weight.detach(), torch.full((2, 2), 9.0 * weight))


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_layers_that_start_late_take_the_steps_of_a_new_optimizer(name: str) -> None:
    """The first step of Adam is lr in each bias, and so are those with an equal gradient."""
    early, late = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    optimizer = build_optimizer(nn.ModuleList([early, late]), OptimConfig(name, lr=0.1, weight_decay=0), late=[late])
    for step in range(10):
        for part in (early, late)[: 1 + step // 8]:
            part.bias.grad = torch.full((2,), 1e3)
        optimizer.step()
    torch.testing.assert_close(early.bias.detach(), torch.full((2,), -1.0))
    torch.testing.assert_close(late.bias.detach(), torch.full((2,), -0.2))


def test_every_parameter_is_in_one_group() -> None:
    parts = nn.ModuleList([nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)])
    config = OptimConfig("lamb", lr=0.1, backbone_lr=0.5, weight_decay=0.01)
    optimizer = build_optimizer(parts, config, backbone=[parts[0]], late=[parts[1]])
    found = [
        (parameter, group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    expected = {parts[0].weight: (0.05, 0.01), parts[0].bias: (0.05, 0), parts[1].weight: (0.1, 0.01)}
    expected |= {parts[1].bias: (0.1, 0), parts[2].weight: (0.1, 0), parts[2].bias: (0.1, 0)}
    assert {parameter: settings for parameter, *settings in map(list, found)} == {
        parameter: list(settings) for parameter, settings in expected.items()
    }
    assert len(found) == len(expected)
    assert optimizer.param_groups[0]["lr"] == 0.1  # the rate that is logged


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
