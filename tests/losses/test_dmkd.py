from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import DFMSD, DMKD, DFMSDOptions, DMKDOptions, LossContext

N, C, H, W = 2, 4, 6, 5
BOXES = [torch.tensor([[4.0, 4.0, 30.0, 20.0]]), torch.zeros(0, 4)]


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(
    "switches", [{}, {"direction": "unimportant", "channel": False}, {"generation": "light", "ratio": 0.2}]
)
def test_dmkd_is_dfmsd_without_alignment_enhancement_and_stages(stage: int, switches: dict[str, object]) -> None:
    options = {"generation": "full", **switches}
    dmkd = DMKD(C, DMKDOptions(**switches)).double()
    same = DFMSD(C, DFMSDOptions(**options, alpha=1.0, beta=0.0, enhancement=False)).double()
    same.load_state_dict(dmkd.state_dict())
    student, teacher = torch.randn(2, N, C, H, W, dtype=torch.float64)
    found = []
    for method, number in ((dmkd, stage), (same, 1)):
        feature = student.clone().requires_grad_()
        terms = method(feature, teacher, LossContext(BOXES, (48, 40), 8, number))
        found.append((terms, torch.autograd.grad(sum(terms.values()), [feature, *method.parameters()])))
    assert list(found[0][0]) == ["mask"] == list(dmkd.terms)
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_with_enhancement_a_later_stage_would_differ() -> None:
    dmkd, dfmsd = DMKD(C, DMKDOptions()), DFMSD(C, DFMSDOptions(generation="full", alpha=1.0, beta=0.0))
    dfmsd.load_state_dict(dmkd.state_dict())
    student, teacher = torch.randn(2, N, C, H, W)
    values = [m(student, teacher, LossContext(BOXES, (48, 40), 8, 2))["mask"] for m in (dmkd, dfmsd)]
    assert values[0] != values[1]


@pytest.mark.parametrize("option", ["alpha", "beta", "enhancement", "gamma"])
def test_fixed_values_are_not_options(option: str) -> None:
    with pytest.raises(DfmsdError, match=rf"loss\.{option}: dmkd has no such option"):
        losses.check_options("dmkd", **{option: 0.5})


def test_options_are_checked_as_those_of_dfmsd() -> None:
    for options, message in (({"ratio": 2.0}, r"loss\.ratio"), ({"spatial": False, "channel": False}, "both off")):
        with pytest.raises(DfmsdError, match=message):
            losses.check_options("dmkd", **options)
