"""A detector that is only looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.detectors.base import DenseHead, Detector, Towers
from dfmsd.distillation.cache import TeacherCache
from dfmsd.types import FeaturePyramid, LevelSpec


class TaughtLevel(NamedTuple):
    """What a teacher's dense head makes of one level; no gradient."""

    towers: Towers
    logits: Tensor
    """``N x A x K``."""
    box_deltas: Tensor
    """Encoded boxes, ``N x A x 4``."""


class FrozenTeacher:
    """Hold a teacher outside the module tree: never trained, never saved, in eval mode at every step.

    Not an ``nn.Module`` on purpose: whoever keeps it as an attribute cannot register it, so that it is in no
    optimiser, checkpoint, parameter count or DDP wrapper, and ``train()`` of its owner does not reach it.

    Args:
        detector: the teacher; its parameters are frozen in place.
        name: for messages, usually the reference it was loaded from.
        arithmetic: float32, or a half type that the forward pass is autocast to; None takes what the caller has.

    Attributes:
        cache: where `features` looks first, if there is one.
    """

    def __init__(self, detector: Detector, name: str, arithmetic: torch.dtype | None = None) -> None:
        self.detector = detector.eval().requires_grad_(False)
        self.name = name
        self.arithmetic = arithmetic
        self.cache: TeacherCache | None = None
        self._modules = tuple(detector.modules())

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """Levels of the teacher's pyramid."""
        return self.detector.levels

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the weights in place."""
        self.detector.to(device)
        return self

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        if self.arithmetic is None:
            return nullcontext()
        half = self.arithmetic != torch.float32
        return torch.autocast(device, self.arithmetic if half else None, enabled=half)

    @torch.no_grad()  # not inference_mode, whose tensors autograd refuses to keep: it is no faster here
    def features(self, images: Tensor, keys: Sequence[str | None] = ()) -> FeaturePyramid:
        """Give the teacher's pyramid without gradient; with ``keys``, the stored levels of the cache.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
            keys: of the content of each image, see `dfmsd.types.Batch`; the cache is left out without them.
        """
        with self._autocast(images.device.type):
            if self.cache is None or not keys:
                return self._compute(images)
            return self.cache(images, keys, self._compute)

    @torch.no_grad()
    def read(self, head: DenseHead, levels: Mapping[str, Tensor], reused: int) -> dict[str, TaughtLevel]:
        """Run the teacher's head on levels of its pyramid, computed or stored.

        Args:
            head: of the teacher.
            levels: ``N x C x H x W`` by name.
            reused: convolutions behind the cut of the towers.
        """
        self._be_frozen()
        taught = {}
        with self._autocast(next(iter(levels.values())).device.type):
            for name, level in levels.items():
                towers = head.towers(level, reused)
                taught[name] = TaughtLevel(towers, *head.predict(towers, reused))
        return taught

    def _compute(self, images: Tensor) -> FeaturePyramid:
        self._be_frozen()
        return self.detector.features(images)

    def _be_frozen(self) -> None:
        # Each time, since somebody else may have switched the same detector to training; a look costs a hundredth of
        # the switch.
        if any(module.training for module in self._modules):
            self.detector.eval()
