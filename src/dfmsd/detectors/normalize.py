"""Normalization of images for a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfmsd.errors import DfmsdError


class Normalize(nn.Module):
    """Normalize images for a model: ``(image - mean) / std``, channel by channel.

    Args:
        mean: Mean of each channel for pixels in [0, 1], in the model's channel order.
        std: Standard deviation of each channel; for a model that takes pixels in 0..255, its own value divided by 255.
        bgr: Whether the model's channel order is blue, green, red.

    Raises:
        DfmsdError: The values cannot refer to pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, bgr: bool = False) -> None:
        super().__init__()
        if not len(mean) == len(std) == 3 or max(map(abs, mean)) > 1 or min(std) <= 0 or max(std) > 1:
            raise DfmsdError(
                f"mean {list(mean)}, std {list(std)}: expected three numbers each, for pixels in [0, 1]; divide values "
                "for pixels in 0..255 by 255"
            )
        self.bgr = bgr
        # not persistent: checkpoints hold the model's own state dict.
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize images, ``N x 3 x H x W``, RGB in [0, 1]."""
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return the channel order."""
        return f"bgr={self.bgr}"
