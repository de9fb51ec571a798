"""Rebuilding what was masked: the layers that exist during training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GenerationBlock(nn.Sequential):
    """Rebuild a masked feature map from its context: conv3x3, ReLU, conv3x3, ``C -> C``.

    Source: the generation block of MGD (yzd-v/MGD).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )


class SelfAdjustingFusion(nn.Module):
    """Blend two reconstructions with learned weights that sum to 1.

    ``R = w_s R_s + w_c R_c``, ``(w_s, w_c) = softmax(theta)``, ``theta`` starts at 0. A softmax, because
    free weights could lower the loss by shrinking themselves.

    Source: reconstruction of the "self-adjustable weighting" of DMKD.
    """

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2))

    def forward(self, spatial: Tensor, channel: Tensor) -> Tensor:
        """Blend two tensors of one shape."""
        return torch.lerp(channel, spatial, self.theta.softmax(0)[0])
