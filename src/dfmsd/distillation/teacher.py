"""Frozen teacher wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from dfmsd.detectors.base import Detector
from dfmsd.detectors.dense import DenseHead
from dfmsd.distillation.cache import TeacherCache
from dfmsd.losses import HeadSide
from dfmsd.types import FeaturePyramid, LevelSpec, Queries


class FrozenTeacher:
    """Hold a teacher outside the module tree: never trained, never saved, in eval mode at every step.

    This is deliberately no ``nn.Module``: an attribute of a module cannot register it, so it appears in no optimizer,
    checkpoint, parameter count or DDP wrapper, and the owner's ``train()`` does not reach it.

    Args:
        detector: the teacher; it is frozen and switched to eval mode in place.
        name: for messages, usually the reference that it was loaded from.
        compute_dtype: float32, or a half-precision type to autocast to; None follows the caller's autocast.
        scale: side of the teacher's images divided by that of the student's.

    Attributes:
        cache: where `features` looks first, if set.
    """

    def __init__(
        self, detector: Detector, name: str, compute_dtype: torch.dtype | None = None, scale: float = 1.0
    ) -> None:
        self.detector = detector.eval().requires_grad_(False)
        self.name = name
        self.compute_dtype = compute_dtype
        self.scale = scale
        self.cache: TeacherCache | None = None
        self._modules = tuple(detector.modules())

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """Levels of the teacher's pyramid, in pixels of the student's images."""
        return tuple(level.seen_at(self.scale) for level in self.detector.levels)

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the weights in place."""
        self.detector.to(device)
        return self

    @torch.no_grad()  # not inference_mode: autograd cannot save its tensors, and it is no faster here
    def features(self, images: Tensor, keys: Sequence[str | None] = ()) -> FeaturePyramid:
        """Return the teacher's pyramid without gradient, or with ``keys`` the levels that the cache stores.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
            keys: content key of each image, see `dfmsd.types.Batch`; without keys the cache is not used.
        """
        with self._autocast(images.device.type):
            if self.cache is None or not keys:
                return self._compute(images)
            return self.cache(images, keys, self._compute)

    @torch.no_grad()
    def features_with_queries(self, images: Tensor) -> tuple[FeaturePyramid, Queries]:
        """Return the pyramid and the predictions of all queries without gradient; they are not cached.

        Args:
            images: ``N x 3 x H x W``, RGB in [0, 1].
        """
        self._ensure_eval()
        with self._autocast(images.device.type):
            return self.detector.features_with_queries(images)

    @torch.no_grad()
    def run_head(self, head: DenseHead, level: Tensor, reused: int) -> HeadSide:
        """Run the teacher's dense head on one level of its pyramid, computed or cached.

        Args:
            head: the teacher's head on this level.
            level: ``N x C x H x W``.
            reused: number of convolutions after the cut of the towers.
        """
        self._ensure_eval()
        with self._autocast(level.device.type):
            towers = head.towers(level, reused)
            return HeadSide(towers, *head.predict(towers, reused))

    def _compute(self, images: Tensor) -> FeaturePyramid:
        self._ensure_eval()
        return self.detector.features(images)

    def _ensure_eval(self) -> None:
        # At every call, since other code may have switched the same detector to training. Checking costs a hundredth
        # of calling eval().
        if any(module.training for module in self._modules):
            self.detector.eval()

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        if self.compute_dtype is None:
            return nullcontext()
        half = self.compute_dtype != torch.float32
        return torch.autocast(device, self.compute_dtype if half else None, enabled=half)
