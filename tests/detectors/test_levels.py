"""Pyramid levels, read off a dry run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dfmsd.detectors.build.backbones import build_backbone
from dfmsd.detectors.build.pyramid import PyramidBackbone
from dfmsd.detectors.levels import dry_run, read_levels
from dfmsd.types import LevelSpec


class Pooled(nn.Module):
    """A module without parameters that returns the image at given strides."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.strides = strides

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, stride) for stride in self.strides]


def test_a_dry_run_keeps_flags_and_buffers() -> None:
    backbone = build_backbone("resnet10t", (8, 16, 32))
    pyramid = PyramidBackbone(backbone.body, backbone.channels, 16, LastLevelMaxPool()).train()
    pyramid.body.bn1.eval()
    before = {name: value.clone() for name, value in pyramid.named_buffers()}
    flags = [module.training for module in pyramid.modules()]
    assert list(dry_run(pyramid)) == ["0", "1", "2", "pool"]
    assert [module.training for module in pyramid.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in pyramid.named_buffers())


def test_levels_are_named_after_their_strides() -> None:
    assert read_levels(Pooled(4, 8, 32, 32)) == (
        LevelSpec("p2", 3, 4),
        LevelSpec("p3", 3, 8),
        LevelSpec("p5", 3, 32),
        LevelSpec("p5_2", 3, 32),
    )


def test_stated_strides_name_the_nearest_level() -> None:
    assert [level.name for level in read_levels(Pooled(64, 128), side=128, strides=(64, 100))] == ["p6", "p7"]


def test_a_function_of_the_images_can_run_the_model() -> None:
    module = Pooled(8)
    assert read_levels(module, lambda images: {"only": module(images)[0]}) == (LevelSpec("p3", 3, 8),)
