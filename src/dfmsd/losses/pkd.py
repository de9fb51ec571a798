"""PKD at one pyramid level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class PKDOptions:
    """Options of PKD.

    Args:
        eps: added to standard deviations; 1e-6 in the official code, which lets the gradient of a constant channel
            explode.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: ``eps`` is not above 0.
        """
        if self.eps <= 0:
            raise DfmsdError(f"loss.eps must be above 0, got {self.eps}; try 1e-3")


class PKD(Method):
    r"""Imitate the teacher's feature up to scale and shift of each channel.

    $L = \frac12 \mathrm{mean}(z(X) - z(T))^2$, which is one minus the correlation, averaged over channels.

    Args:
        channels: of the aligned pair.
        options: see `PKDOptions`.

    Source: PKD (arXiv 2207.02039, mmrazor ``PKDLoss``), weight 10 on each level for one-stage detectors, 6 for Faster
    R-CNN. Differs from the official code in ``eps``.
    """

    name = "pkd"
    Options = PKDOptions
    terms = ("pkd",)
    default_weight = 10.0

    def __init__(self, channels: int, options: PKDOptions) -> None:
        super().__init__(channels, options)
        self.eps = options.eps

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the term ``pkd``, about 0 to 2; the arguments are those of `Method.forward`."""
        # as functional.pkd, which does not return the correlation
        standard_teacher = functional.standardize(teacher, self.eps)
        alignment = functional.align_distributions(student, standard_teacher, self.eps)
        self.correlation = alignment.correlation
        return {"pkd": alignment.error}
