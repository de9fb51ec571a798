"""MGD at one pyramid level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.generation import GenerationBlock
from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class MGDOptions:
    """Options of MGD.

    Args:
        ratio: probability that a position is masked, below 1; published are 0.65 for one-stage detectors and 0.45 for
            Faster R-CNN.
    """

    ratio: float = 0.65

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: ``ratio`` out of range.
        """
        if not 0 <= self.ratio < 1:
            raise DfmsdError(
                f"loss.ratio must be at least 0 and below 1, got {self.ratio}: with all positions masked the student "
                "learns nothing"
            )


class MGD(Method):
    r"""Generate the teacher's feature from the student's, of which random positions are masked.

    $L = \frac1N \sum_{n,c,i,j} (G(X \cdot M) - T)^2$ over all positions, with $G$ = conv3x3, ReLU, conv3x3.

    The sum grows with the area of the level: the published weight belongs to inputs of 800 x 1333 pixels.

    Args:
        channels: of the aligned pair.
        options: see `MGDOptions`.

    Source: MGD (arXiv 2205.01529, yzd-v/MGD), weight 2e-5 for one-stage detectors, 5e-7 for Faster R-CNN.
    """

    name = "mgd"
    Options = MGDOptions
    terms = ("mgd",)
    default_weight = 2e-5

    def __init__(self, channels: int, options: MGDOptions) -> None:
        super().__init__(channels, options)
        self.ratio = options.ratio
        self.generation = GenerationBlock(channels)

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the term ``mgd``; the arguments are those of `Method.forward`."""
        mask = functional.random_mask(student, self.ratio)
        return {"mgd": functional.mgd(student, teacher, mask, self.generation)}
