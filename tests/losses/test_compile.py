from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.types import LevelSpec

LEVELS = [LevelSpec(f"p{i}", 8, 2**i) for i in (3, 4)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("names", [["dfmsd"], ["pkd"], ["cwd"], ["fgd"], ["amd"], ["pkd", "mgd"]], ids="+".join)
def test_a_compiled_loss_equals_the_plain_one(names: list[str]) -> None:
    loss = [{"name": name, **({"ratio": 0.0} if name == "mgd" else {})} for name in names]  # random masks differ
    plain, fast = (losses.build(loss, LEVELS, LEVELS) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    fast.compile()
    assert list(fast.state_dict()) == list(plain.state_dict())
    for count in (1, 4, 2):  # the number of boxes changes from batch to batch
        teacher = {level.name: torch.randn(2, 8, 64 // level.stride, 64 // level.stride) for level in LEVELS}
        boxes = [torch.tensor([[4.0, 4.0, 40.0, 30.0]]).repeat(count, 1), torch.zeros(0, 4)]
        found = []
        for criterion in (plain, fast):
            student = {key: (value + 1).roll(1, 0).requires_grad_() for key, value in teacher.items()}
            terms = criterion(student, teacher, boxes=boxes, size=(64, 64), stage=2)
            sum(terms.values()).backward()
            gradients = [value.grad for value in (*student.values(), *criterion.parameters())]
            found.append((dict(terms), dict(criterion.diagnostics), gradients))
            criterion.zero_grad()
        assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
