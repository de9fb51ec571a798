"""Layers that generate a teacher's feature from a masked student, used in training only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Generation = Literal["full", "light"]


class GenerationBlock(nn.Sequential):
    """Generate a feature map from its masked version: conv, ReLU, conv, ``C -> hidden -> C``.

    Args:
        channels: ``C``.
        hidden: channels in between; ``C`` by default.
        kernel: size of both kernels, odd. With 1, a position is generated from its own channels only.

    Source: the generation block of MGD (yzd-v/MGD), with ``hidden = C`` and ``kernel = 3``.
    """

    def __init__(self, channels: int, hidden: int | None = None, kernel: int = 3) -> None:
        hidden = hidden or channels
        super().__init__(
            nn.Conv2d(channels, hidden, kernel, padding=kernel // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel, padding=kernel // 2),
        )


def generation_blocks(branches: Sequence[str], channels: int, generation: Generation) -> nn.ModuleDict:
    """Build the block of each masking branch.

    - ``full``: MGD's block in every branch.
    - ``light``: half the channels in between, and 1x1 kernels in the branch ``channel``, whose masked channels can be
      inferred from the other channels of the same position. A quarter of the multiplications for ``C = 256``.

    Args:
        branches: ``spatial``, ``channel`` or both.
        channels: of the feature map.
        generation: see above.
    """
    if generation == "full":
        return nn.ModuleDict({name: GenerationBlock(channels) for name in branches})
    kernels = {"spatial": 3, "channel": 1}
    return nn.ModuleDict({name: GenerationBlock(channels, max(channels // 2, 1), kernels[name]) for name in branches})


class SelfAdjustingFusion(nn.Module):
    """Blend two generated features with learned weights that sum to 1.

    ``R = w_s R_s + w_c R_c`` with ``(w_s, w_c) = softmax(theta)``; ``theta`` starts at 0. Without the softmax, the
    weights could lower the loss simply by shrinking.

    Source: reconstruction of the "self-adjustable weighting" of DMKD.
    """

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2))

    @property
    def weight(self) -> Tensor:
        """``w_s``, a scalar."""
        return self.theta.softmax(0)[0]

    def forward(self, spatial: Tensor, channel: Tensor) -> Tensor:
        """Blend two tensors of the same shape."""
        return torch.lerp(channel, spatial, self.weight)
