"""PKD at one pyramid level: the correlation of the features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses.functional import align_distributions, standardize
from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class PKDOptions:
    """Switches of PKD.

    Args:
        eps: of the standardisation; the official code has 1e-6, which lets dead channels explode.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            DfmsdError: ``eps`` is not above 0.
        """
        if self.eps <= 0:
            raise DfmsdError(f"loss.eps: {self.eps} is not above 0; give a small number such as 1e-3")


class PKD(Method):
    r"""Imitate the teacher's feature up to scale and shift of each channel.

    $L = \frac12 \mathrm{mean}(z(X) - z(T))^2$, which is one minus the correlation, averaged over channels.

    Args:
        channels: of the aligned pair.
        options: see `PKDOptions`.

    Source: PKD (arXiv 2207.02039, mmrazor ``PKDLoss``), weight 10 on each level for one-stage detectors, 6 for Faster
    R-CNN; differs from the official code in ``eps``.
    """

    Options = PKDOptions
    terms = ("pkd",)
    default_weight = 10.0

    def __init__(self, channels: int, options: PKDOptions) -> None:
        super().__init__(channels, options)
        self.eps = options.eps

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give the term ``pkd``, about 0..2.

        Args:
            student: aligned, ``N x C x H x W``.
            teacher: ``N x C x H x W``.
            context: not used.
        """
        alignment = align_distributions(student, standardize(teacher, self.eps), self.eps)
        self.correlation = alignment.correlation
        return {"pkd": alignment.error}
