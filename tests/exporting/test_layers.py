"""Layers and their folded forms, against the modules that they come from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d, SqueezeExcitation

from dfmsd.exporting.layers import Layer, layers_of


class Scaled(nn.Module):
    """A factor and a summand per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.summand = nn.Parameter(torch.randn(1, 4, 1, 1)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.summand


class Branches(nn.Module):
    """Two convolutions whose normalizations run in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, 2, 1, groups=1), normalization(4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return self.norm(one).mean() + two.mean()


def normalization(channels: int, kind: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    module = kind(channels).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(module, name).data.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize(
    "behind", [lambda: normalization(4), lambda: normalization(4, FrozenBatchNorm2d), Scaled, nn.Identity]
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_last_form_does_all(behind: Callable[[], nn.Module], bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, dilation=2, bias=bias), behind())
    (forms,) = layers_of(module, 16)
    images = torch.rand(1, 3, 16, 16)
    last = forms[-1]
    assert (last.stride, last.dilation, last.groups) == ((2, 2), (2, 2), 1)
    found = F.conv2d(images, last.weight, last.bias, last.stride, 0, last.dilation)
    torch.testing.assert_close(found, module(images).detach())


def test_layers_keep_their_order() -> None:
    forms = layers_of(Branches(), 8)
    assert [len(one) for one in forms] == [2, 1]
    assert [one[0].weight.shape for one in forms] == [(4, 3, 1, 1), (5, 3, 3, 3)]


def test_what_depends_on_the_image_is_not_folded() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), SqueezeExcitation(4, 2), nn.Flatten(), nn.Linear(4 * 64, 2))
    forms = layers_of(module, 8)
    assert [len(one) for one in forms] == [1, 1, 1, 1]
    assert torch.equal(forms[-1][0].weight, module[-1].weight)


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ({}, True),
        ({"weight": torch.tensor([[1.0, 1e-5]])}, True),
        ({"weight": torch.tensor([[1.0, 1e-3]])}, False),
        ({"weight": torch.tensor([[1.0, float("nan")]])}, False),
        ({"weight": torch.tensor([[1.0, 0.0, 0.0]])}, False),
        ({"bias": torch.tensor([0.3])}, False),
        ({"stride": (2, 2)}, False),
        ({"groups": 2}, False),
    ],
)
def test_layers_differ_by_more_than_rounding(change: dict[str, object], near: bool) -> None:
    layer = Layer(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]))
    assert layer.is_near(layer._replace(**change)) is near
