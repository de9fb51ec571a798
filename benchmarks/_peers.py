"""Reference implementations of the same losses: those of other projects, if installed, and plain formulas.

pip install --no-deps --target build/peers -r benchmarks/peers.txt
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from dfmsd.losses import LossContext

PEERS = Path(__file__).resolve().parents[1] / "build" / "peers"
PACKAGES = ("", ".models", ".models.losses", ".models.architectures", ".models.architectures.connectors")

LevelLoss = Callable[[Tensor, Tensor], Tensor]


def mmrazor_losses(channels: int) -> dict[str, tuple[LevelLoss, nn.Module]]:
    """Return mmrazor's losses of one level with their published weights, by dfmsd's names; empty if not installed.

    Each comes with the module that holds its parameters. The packages' ``__init__`` files are bypassed: they import
    modules that fail with current versions of PyTorch and are not needed by these losses.
    """
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    if "mmrazor" not in sys.modules and not _register_packages():
        return {}
    models = "mmrazor.models"
    connector = importlib.import_module(f"{models}.architectures.connectors.mgd_connector").MGDConnector(
        channels, channels
    )
    mgd = importlib.import_module(f"{models}.losses.mgd_loss").MGDLoss()
    pkd = importlib.import_module(f"{models}.losses.pkd_loss").PKDLoss(loss_weight=10)
    cwd = importlib.import_module(f"{models}.losses.cwd").ChannelWiseDivergence(loss_weight=10)
    no_layers = nn.Module()
    return {
        "mgd": (lambda student, teacher: mgd(connector.forward_train(student), teacher), connector),
        "pkd": (pkd, no_layers),
        "cwd": (cwd, no_layers),
    }


def _register_packages() -> bool:
    spec = find_spec("mmengine") and find_spec("mmrazor")
    if not spec or not spec.submodule_search_locations:
        return False
    root = Path(next(iter(spec.submodule_search_locations)))
    for package in PACKAGES:
        module = ModuleType(f"mmrazor{package}")
        module.__path__ = [str(root.joinpath(*package.split(".")))]
        sys.modules[module.__name__] = module
    return True


class FGDFormula(nn.Module):
    """Plain formula of FGD, with the loops over images and boxes of the official code.

    Args:
        channels: of the feature map.
        context: boxes and stride.
    """

    def __init__(self, channels: int, context: LossContext) -> None:
        super().__init__()
        self.context = context
        self.attend = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(2))
        self.transform = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels // 2, 1),
                nn.LayerNorm([channels // 2, 1, 1]),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels // 2, channels, 1),
            )
            for _ in range(2)
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the weighted sum of the four terms."""
        (spatial_s, channel_s), (spatial_t, channel_t) = self._attentions(student), self._attentions(teacher)
        weighted_s, weighted_t = (feature * spatial_t.sqrt() * channel_t.sqrt() for feature in (student, teacher))
        foreground, background = (mask.sqrt() for mask in self._masks(spatial_t))
        fg = (weighted_s * foreground - weighted_t * foreground).square().sum()
        bg = (weighted_s * background - weighted_t * background).square().sum()
        attention = (spatial_s - spatial_t).abs().sum() + (channel_s - channel_t).abs().sum()
        related = (self._relate(feature, net) for net, feature in enumerate((student, teacher)))
        relation = (next(related) - next(related)).square().sum()
        return (1e-3 * fg + 5e-4 * bg + 5e-4 * attention + 5e-6 * relation) / len(student)

    @staticmethod
    def _attentions(feature: Tensor) -> tuple[Tensor, Tensor]:
        n, channels, height, width = feature.shape
        energy = feature.abs()
        spatial = height * width * torch.softmax(energy.mean(1).view(n, -1) / 0.5, dim=1)
        channel = channels * torch.softmax(energy.mean((2, 3)) / 0.5, dim=1)
        return spatial.view(n, 1, height, width), channel.view(n, channels, 1, 1)

    def _masks(self, like: Tensor) -> tuple[Tensor, Tensor]:
        foreground, background = torch.zeros_like(like), torch.ones_like(like)
        for n, boxes in enumerate(self.context.boxes):
            for x1, y1, x2, y2 in boxes / self.context.stride:
                left, top, right, bottom = int(x1.floor()), int(y1.floor()), int(x2.ceil()) + 1, int(y2.ceil()) + 1
                inside = foreground[n, 0, top:bottom, left:right]
                inside.clamp_(min=1 / ((bottom - top) * (right - left)))
            background[n] = torch.where(foreground[n] > 0, 0.0, 1.0)
            if background[n].sum():
                background[n] /= background[n].sum()
        return foreground, background

    def _relate(self, feature: Tensor, net: int) -> Tensor:
        n, channels, height, width = feature.shape
        attention = self.attend[net](feature).view(n, 1, height * width).softmax(2).unsqueeze(-1)
        context = torch.matmul(feature.view(n, 1, channels, height * width), attention)
        related: Tensor = feature + self.transform[net](context.view(n, channels, 1, 1))
        return related


def formula(name: str, channels: int, context: LossContext) -> tuple[LevelLoss, nn.Module]:
    """Return the plain formula of a method in autograd operations, and the module that holds its parameters."""
    if name == "fgd":
        fgd = FGDFormula(channels, context)
        return fgd, fgd
    first, second = (
        nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        for _ in range(2)
    )
    theta = nn.Parameter(torch.zeros(2))

    def standardized(feature: Tensor) -> Tensor:
        std, mean = torch.std_mean(feature, dim=(0, 2, 3), keepdim=True)
        return (feature - mean) / (std + 1e-3)

    def important(energy: Tensor, ratio: float) -> Tensor:
        flat = energy.flatten(1)
        attention = flat.shape[1] * torch.softmax(flat / 0.5, dim=1)
        threshold = attention.kthvalue(flat.shape[1] - round(ratio * flat.shape[1]), dim=1, keepdim=True).values
        return (attention <= threshold).float().view_as(energy)

    def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean()

    def pkd(student: Tensor, teacher: Tensor) -> Tensor:
        return 10 * (standardized(student) - standardized(teacher)).square().mean() / 2

    def cwd(student: Tensor, teacher: Tensor) -> Tensor:
        p, log_q = teacher.flatten(2).softmax(2), student.flatten(2).log_softmax(2)
        return 10 * (p * (p.log() - log_q)).sum(2).mean()

    def mgd(student: Tensor, teacher: Tensor) -> Tensor:
        mask = (torch.rand(len(student), 1, *student.shape[2:]) >= 0.65).float()
        return 2e-5 * (first(student * mask) - teacher).square().sum() / len(student)

    def dfmsd(student: Tensor, teacher: Tensor) -> Tensor:
        target = standardized(teacher)
        positions = important(teacher.abs().mean(1, keepdim=True), 0.5)
        channel = important(teacher.abs().mean((2, 3), keepdim=True), 0.3)
        weights = theta.softmax(0)
        rebuilt = weights[0] * first(student * positions) + weights[1] * second(student * channel)
        return (rebuilt - target).square().mean() + (standardized(student) - target).square().mean() / 2

    layers = {"mgd": [first], "dfmsd": [first, second]}.get(name, [])
    holder = nn.ModuleList(layers)
    if name == "dfmsd":
        holder.register_parameter("theta", theta)
    return {"fitnet": fitnet, "pkd": pkd, "cwd": cwd, "mgd": mgd, "dfmsd": dfmsd}[name], holder
