"""AMD at one pyramid level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.generation import GenerationBlock
from dfmsd.losses.method import LossContext, Method

REDUCTION = 16


@dataclass(frozen=True)
class AMDOptions:
    """Options of AMD, one for every choice that the abstract leaves open.

    Args:
        gate: multiply the generated channels by a gate computed from the teacher.
        threshold: lowest attention, of mean 1, that is masked; > 0.
        tau: temperature of the attention, > 0.
    """

    removed: ClassVar[Mapping[str, Any]] = {
        "selection": "threshold",
        "direction": "important",
        "ratio": 0.5,
        "target": "raw",
    }
    """Options of earlier versions, see `dfmsd.utils.removed.drop_removed`."""
    gate: bool = True
    threshold: float = 1.0
    tau: float = 0.5

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: a temperature or a threshold that is not above 0.
        """
        if self.threshold <= 0:
            raise DfmsdError(
                f"loss.threshold must be above 0, got {self.threshold}: with everything masked the student learns "
                "nothing; 1 is usual"
            )
        if self.tau <= 0:
            raise DfmsdError(f"loss.tau must be above 0, got {self.tau}; 0.5 is usual")


class ChannelGate(nn.Sequential):
    """Squeeze and excitation: a factor in 0..1 for each channel of ``N x C x H x W``, as ``N x C x 1 x 1``.

    Args:
        channels: ``C``.

    Source: SENet (arXiv 1709.01507), with its reduction of 16.
    """

    def __init__(self, channels: int) -> None:
        hidden = max(channels // REDUCTION, 1)
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )


class AMD(Method):
    r"""Generate the teacher's feature from a student that is masked where the teacher's attention is high.

    $L = \frac1N \sum_{n,c,i,j} (G(X \cdot M) \cdot g(T) - T)^2$ with $M = 0$ where $A_s(T) \geq threshold$,
    $G$ = conv3x3, ReLU, conv3x3 and $g$ = `ChannelGate`.

    Sum and weight are MGD's: the sum grows with the area of the level. How much is masked depends on the scale of the
    teacher's features.

    Args:
        channels: of the aligned pair.
        options: see `AMDOptions`.

    Source: reconstruction of AMD (arXiv 2301.13538) from its abstract: attention-guided masking and "a simple and
    efficient module to allow the student network channel to be adaptive".
    """

    name = "amd"
    Options = AMDOptions
    terms = ("amd",)
    default_weight = 2e-5

    def __init__(self, channels: int, options: AMDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        self.generation = GenerationBlock(channels)
        self.gate = ChannelGate(channels) if options.gate else None

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the term ``amd``; the arguments are those of `Method.forward`."""
        o = self.options
        mask = functional.threshold_mask(functional.spatial_attention(teacher, o.tau), o.threshold)
        return {"amd": functional.amd(student, teacher, mask, self.generation, self.gate)}
