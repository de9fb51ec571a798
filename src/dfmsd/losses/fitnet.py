"""FitNet at one pyramid level: the features themselves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class FitNetOptions:
    """FitNet has no switches but its weight."""


class FitNet(Method):
    r"""Imitate the teacher's feature, $L = \mathrm{mean}(X - T)^2$.

    Args:
        channels: of the aligned pair.
        options: none.

    Source: FitNets (arXiv 1412.6550), applied to every level.
    """

    Options = FitNetOptions
    terms = ("fitnet",)

    def __init__(self, channels: int, options: FitNetOptions) -> None:
        super().__init__(channels, options)

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give the term ``fitnet``.

        Args:
            student: aligned, ``N x C x H x W``.
            teacher: ``N x C x H x W``.
            context: not used.
        """
        return {"fitnet": F.mse_loss(student, teacher)}
