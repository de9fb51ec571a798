"""Feature maps of an SSDLite detector, on any backbone."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.detection.ssdlite import _extra_block, _normal_init

from dfmsd.detectors.build.backbones import Backbone
from dfmsd.detectors.build.pyramid import FreezableBackbone

STRIDES = (16, 32)
"""Strides of the backbone's maps."""
EXTRA_WIDTHS = (4, 2, 2, 1)
"""Channels of the extra levels, relative to those of the coarsest one."""


class SSDLiteBackbone(FreezableBackbone):
    """A backbone's maps and four extra levels, each computed from the previous one by a depthwise stride-2 convolution.

    Args:
        backbone: Backbone with maps at `STRIDES`.
        channels: Channels of the coarsest level; torchvision has 128.
        frozen_stride: See `FreezableBackbone`.

    Differs from torchvision in taking the backbone's last map of stride 16, not the expanded one inside the following
    block, and in batch normalization with PyTorch's epsilon and momentum instead of TensorFlow's.
    """

    def __init__(self, backbone: Backbone, channels: int, frozen_stride: int = 0) -> None:
        super().__init__(backbone.body, frozen_stride)
        widths = [backbone.channels[-1], *(factor * channels for factor in EXTRA_WIDTHS)]
        self.extra = nn.ModuleList(_extra_block(finer, coarser, nn.BatchNorm2d) for finer, coarser in pairwise(widths))
        _normal_init(self.extra)
        self.out_channels = [*backbone.channels, *widths[1:]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps, finest level first, with torchvision's level names."""
        maps = self.maps(images)
        for block in self.extra:
            maps.append(block(maps[-1]))
        return {str(index): value for index, value in enumerate(maps)}
