"""MGD at one pyramid level: rebuild the teacher's feature from a randomly masked one of the student."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.losses.generation import GenerationBlock
from dfmsd.losses.method import LossContext, Method


@dataclass(frozen=True)
class MGDOptions:
    """Switches of MGD.

    Args:
        ratio: probability that a position is masked, 0..1; published are 0.65 for one-stage detectors and 0.45 for
            Faster R-CNN.
    """

    ratio: float = 0.65

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            DfmsdError: ``ratio`` outside 0..1.
        """
        if not 0 <= self.ratio <= 1:
            raise DfmsdError(f"loss.ratio: {self.ratio} is not a share between 0 and 1")


class MGD(Method):
    r"""Rebuild the teacher's feature from the student's, part of whose positions are masked at random.

    $L = \frac1N \sum_{n,c,i,j} (G(X \cdot M) - T)^2$ over all positions, with $G$ = conv3x3, ReLU, conv3x3.

    The sum grows with the area of the level: the published weight belongs to inputs of 800 x 1333 pixels.

    Args:
        channels: of the aligned pair.
        options: see `MGDOptions`.

    Source: MGD (arXiv 2205.01529, yzd-v/MGD), weight 2e-5 for one-stage detectors, 5e-7 for Faster R-CNN.
    """

    Options = MGDOptions
    terms = ("mgd",)
    default_weight = 2e-5

    def __init__(self, channels: int, options: MGDOptions) -> None:
        super().__init__(channels, options)
        self.ratio = options.ratio
        self.generation = GenerationBlock(channels)

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give the term ``mgd``.

        Args:
            student: aligned, ``N x C x H x W``.
            teacher: ``N x C x H x W``.
            context: not used.
        """
        mask = (torch.rand_like(student[:, :1]) >= self.ratio).to(student.dtype)
        rebuilt = self.generation(student * mask)
        return {"mgd": F.mse_loss(rebuilt, teacher, reduction="sum") / len(student)}
