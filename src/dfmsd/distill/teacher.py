"""A detector that is only looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from dfmsd.detectors.base import Detector
from dfmsd.types import FeaturePyramid, LevelSpec


class FrozenTeacher:
    """Hold a teacher outside the module tree: never trained, never saved, in eval mode at every step.

    Not an ``nn.Module`` on purpose: whoever keeps it as an attribute cannot register it, so that it is in no
    optimiser, checkpoint, parameter count or DDP wrapper, and ``train()`` of its owner does not reach it.

    Args:
        detector: the teacher; its parameters are frozen in place.
        name: for messages, usually the reference it was loaded from.
    """

    def __init__(self, detector: Detector, name: str) -> None:
        self.detector = detector.eval().requires_grad_(False)
        self.name = name

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """Levels of the teacher's pyramid."""
        return self.detector.levels

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the weights in place."""
        self.detector.to(device)
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the teacher to its neck, without gradient."""
        # each time: somebody else may have switched the same detector to training
        self.detector.eval()
        return self.detector.features(images)
