"""The contract between a detector and everything that trains, distils or evaluates it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target


class Detector(nn.Module, ABC):
    """A detector whose feature pyramid can be read.

    ``images`` is always ``N x 3 x H x W``, RGB in [0, 1], padded; each adapter normalises the pixels
    for *its* model, so that a teacher and a student can share one batch.
    """

    levels: tuple[LevelSpec, ...]
    """The pyramid, finest level first, read off the model."""
    class_names: tuple[str, ...]
    """Label ``i`` is ``class_names[i]``."""

    @abstractmethod
    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model to its neck and no further: a teacher's path."""

    @abstractmethod
    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Give pyramid and named losses (scalars) of ONE forward pass: a student's path."""

    @abstractmethod
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects; boxes are clipped to each image's unpadded ``(height, width)``."""
