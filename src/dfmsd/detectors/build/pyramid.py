"""Backbone wrappers: frozen layers and a feature pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from dfmsd.detectors.levels import DRY_RUN_SIZE, observe_dry_run


class FreezableBackbone(nn.Module):
    """A backbone, as ``body``, whose first layers can be frozen.

    Args:
        body: Module from images to feature maps, finest first.
        frozen_stride: Layers of ``body`` up to this stride are frozen, see `layers_up_to`; 0 freezes none.
    """

    def __init__(self, body: nn.Module, frozen_stride: int = 0) -> None:
        super().__init__()
        self.body = body
        self.frozen = layers_up_to(body, frozen_stride) if frozen_stride else ()
        for layer in self.frozen:
            layer.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FreezableBackbone:
        """Set the mode of all layers except the frozen ones, whose normalization keeps its statistics."""
        super().train(mode)
        for layer in self.frozen:
            layer.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of ``body``, finest first."""
        maps = self.body(images)
        return list(maps.values() if isinstance(maps, dict) else maps)


class PyramidBackbone(FreezableBackbone):
    """Backbone and feature pyramid network, with the submodule names of torchvision's ``BackboneWithFPN``.

    Args:
        body: Module from images to feature maps, finest first.
        in_channels: Channels of each map.
        out_channels: Channels of the pyramid.
        extra: Block that computes the coarsest levels.
        frozen_stride: See `FreezableBackbone`.
    """

    def __init__(
        self,
        body: nn.Module,
        in_channels: Sequence[int],
        out_channels: int,
        extra: ExtraFPNBlock,
        frozen_stride: int = 0,
    ) -> None:
        super().__init__(body, frozen_stride)
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, extra_blocks=extra)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the pyramid, finest level first, with torchvision's level names."""
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict((str(i), map_) for i, map_ in enumerate(self.maps(images))))
        return pyramid


def layers_up_to(body: nn.Module, stride: int) -> tuple[nn.Module, ...]:
    """Return the modules of a backbone that run no later than its last layer at ``stride`` or a finer one.

    This includes layers on other shapes that run in between, such as those of a squeeze-and-excitation block.

    Args:
        body: The backbone.
        stride: Input pixels per cell.
    """
    ran: dict[nn.Module, bool] = {}

    def record(layer: nn.Module, _args: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == 4
        ran[layer] = is_map and stride * output.shape[-1] >= DRY_RUN_SIZE

    observe_dry_run(body, {layer: record for layer in body.modules() if not list(layer.children())})
    last = max((index for index, fine in enumerate(ran.values()) if fine), default=-1)
    rest = set(list(ran)[last + 1 :])
    within = ((module, [part for part in module.modules() if part in ran]) for module in body.modules())
    return tuple(module for module, parts in within if parts and rest.isdisjoint(parts))
