"""Rebuilding what was masked: the layers that exist during training only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfmsd.losses.functional import blend_error

Generation = Literal["full", "light"]


class GenerationBlock(nn.Sequential):
    """Rebuild a masked feature map from its context: conv, ReLU, conv, ``C -> hidden -> C``.

    Args:
        channels: ``C``.
        hidden: channels in between; ``C`` by default.
        kernel: side of both kernels, odd. 3 looks at the neighbouring positions, 1 at the other channels only.

    Source: the generation block of MGD (yzd-v/MGD), which has ``hidden = C`` and ``kernel = 3``.
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
    - ``light``: half the channels in between; and 1x1 kernels in the branch ``channel``, whose masked channels can
      be told from the other channels at the same position. A quarter of the multiplications for ``C = 256``.

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
    """Blend two reconstructions with learned weights that sum to 1.

    ``R = w_s R_s + w_c R_c``, ``(w_s, w_c) = softmax(theta)``, ``theta`` starts at 0. A softmax, because
    free weights could lower the loss by shrinking themselves.

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
        """Blend two tensors of one shape."""
        return torch.lerp(channel, spatial, self.weight)

    def error(self, spatial: Tensor, channel: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance of the blend to ``target``."""
        return blend_error(spatial, channel, self.weight, target)
