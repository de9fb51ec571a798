"""Pixels as a foreign model wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfmsd.errors import DfmsdError


class Pixels(nn.Module):
    """Normalise images for a model: ``(image - mean) / std``, channel by channel.

    Args:
        mean: of each channel, for pixels in [0, 1], in the order of the model's channels.
        std: likewise; where a model takes pixels of 0..255, ``1 / 255`` times its own.
        bgr: the model takes blue first.

    Raises:
        DfmsdError: values that cannot be those of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, bgr: bool = False) -> None:
        super().__init__()
        if not len(mean) == len(std) == 3 or max(map(abs, mean)) > 1 or min(std) <= 0 or max(std) > 1:
            raise DfmsdError(
                f"mean {list(mean)}, std {list(std)}: expected three numbers each, for pixels in [0, 1]; divide those "
                "of pixels in 0..255 by 255"
            )
        self.bgr = bgr
        # Not persistent: checkpoints hold the model's own state dict.
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Take ``N x 3 x H x W``, RGB in [0, 1]."""
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std

    def extra_repr(self) -> str:
        """Tell the order of the channels."""
        return f"bgr={self.bgr}"
