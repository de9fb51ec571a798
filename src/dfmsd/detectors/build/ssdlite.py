"""The feature maps of an SSDLite detector, on any backbone."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.detection.ssdlite import _extra_block, _normal_init

from dfmsd.detectors.build.backbones import Backbone, FreezableBackbone

STRIDES = (16, 32)
"""Of the backbone's maps."""
FURTHER_WIDTHS = (4, 2, 2, 1)
"""Channels of the further levels, relative to the coarsest one's."""


class SSDLiteBackbone(FreezableBackbone):
    """A backbone's maps and four further levels, each made of the one before by a depthwise convolution of stride 2.

    Args:
        backbone: gives maps at `STRIDES`.
        channels: of the coarsest level; torchvision has 128.
        frozen_stride: see `FreezableBackbone`.

    Differs from torchvision in taking a backbone's last map of stride 16, for the expanded one inside the block that
    follows; and in batch normalisation with torch's own epsilon and momentum, for TensorFlow's.
    """

    def __init__(self, backbone: Backbone, channels: int, frozen_stride: int = 0) -> None:
        super().__init__(backbone.body, frozen_stride)
        widths = [backbone.channels[-1], *(factor * channels for factor in FURTHER_WIDTHS)]
        self.extra = nn.ModuleList(_extra_block(finer, coarser, nn.BatchNorm2d) for finer, coarser in pairwise(widths))
        _normal_init(self.extra)
        self.out_channels = [*backbone.channels, *widths[1:]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Give the maps, finest level first, with torchvision's own level names."""
        maps = self.maps(images)
        for block in self.extra:
            maps.append(block(maps[-1]))
        return {str(index): value for index, value in enumerate(maps)}
