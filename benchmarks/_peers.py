"""What other projects release for the same losses, where it is installed.

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

PEERS = Path(__file__).resolve().parents[1] / "build" / "peers"
PACKAGES = ("", ".models", ".models.losses", ".models.architectures", ".models.architectures.connectors")

LevelLoss = Callable[[Tensor, Tensor], Tensor]


def mmrazor_losses(channels: int) -> dict[str, tuple[LevelLoss, nn.Module]]:
    """Give mmrazor's losses of one level with their published weights, by our names; empty where it is not installed.

    Each comes with the module that holds its parameters. The packages' ``__init__`` files are bypassed: they import
    parts that fail on current versions of torch, and none of them is needed by these losses.
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
    nothing = nn.Module()
    return {
        "mgd": (lambda student, teacher: mgd(connector.forward_train(student), teacher), connector),
        "pkd": (pkd, nothing),
        "cwd": (cwd, nothing),
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


def formula(name: str, channels: int) -> tuple[LevelLoss, nn.Module]:
    """Give the plain formula of a method, a line of autograd operations after the other, with its parameters."""
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
