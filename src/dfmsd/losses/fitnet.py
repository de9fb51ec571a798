"""FitNet at one pyramid level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dfmsd.losses import functional
from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class FitNetOptions:
    """FitNet has no options of its own."""


class FitNet(Method):
    r"""Imitate the teacher's feature, $L = \mathrm{mean}(X - T)^2$.

    Args:
        channels: of the aligned pair.
        options: none.

    Source: FitNets (arXiv 1412.6550), applied to every level.
    """

    name = "fitnet"
    Options = FitNetOptions
    terms = ("fitnet",)

    def __init__(self, channels: int, options: FitNetOptions) -> None:
        super().__init__(channels, options)

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the term ``fitnet``; the arguments are those of `Method.forward`."""
        return {"fitnet": functional.fitnet(student, teacher)}
