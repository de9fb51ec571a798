"""CWD at one pyramid level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class CWDOptions:
    """Options of CWD.

    Args:
        tau: temperature, > 0.
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: ``tau`` is not above 0.
        """
        if self.tau <= 0:
            raise DfmsdError(f"loss.tau must be above 0, got {self.tau}; the published value is 1")


class CWD(Method):
    r"""Imitate the distribution of each channel over the positions.

    $L = \frac{\tau^2}{N C} \sum_{n,c} KL(p \,\|\, q)$ with $p = \mathrm{softmax}_{ij}(T / \tau)$ and
    $q = \mathrm{softmax}_{ij}(X / \tau)$.

    Args:
        channels: of the aligned pair.
        options: see `CWDOptions`.

    Source: CWD (arXiv 2011.13256, mmrazor ``ChannelWiseDivergence``), weight 10 on each level.
    """

    name = "cwd"
    Options = CWDOptions
    terms = ("cwd",)
    default_weight = 10.0

    def __init__(self, channels: int, options: CWDOptions) -> None:
        super().__init__(channels, options)
        self.tau = options.tau

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the term ``cwd``, at least 0; the arguments are those of `Method.forward`."""
        return {"cwd": functional.cwd(student, teacher, self.tau)}
