"""Sizes of tensors that hold images or maps."""

from __future__ import annotations

from torch import Tensor


def frame_of(images: Tensor) -> tuple[int, int]:
    """Return height and width of ``... x H x W``, padding included."""
    return images.shape[-2], images.shape[-1]
