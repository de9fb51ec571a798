from __future__ import annotations

import torch
from torch import nn

from dfmsd.distillation.balance import GradientBalance
from dfmsd.distillation.rollback import restore_step, step_state


def test_a_step_that_is_undone_counts_neither_in_statistics_nor_in_a_balance() -> None:
    balance = GradientBalance(["mask"], ratio=0.5, first=2)
    module = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "balance": balance}).train()

    def step(scale: float) -> None:
        feature = torch.rand(4, 3, requires_grad=True)
        level = module["norm"](feature)
        balance({"mask/p3": scale * level.square().sum()}, level.sum(), {"p3": level})

    step(1.0)
    before = {name: torch.as_tensor(value).clone() for name, value in module.state_dict().items()}
    state = step_state(module)
    step(float("nan"))
    assert not balance.measures
    assert balance.factor > 0
    restore_step(module, state)
    assert balance.measures
    assert all(torch.equal(torch.as_tensor(value), before[name]) for name, value in module.state_dict().items())
    step(1.0)
    assert not balance.measures
    assert balance.factor > 0
