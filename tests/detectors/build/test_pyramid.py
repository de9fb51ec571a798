"""Frozen layers of backbones."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dfmsd.detectors.build.backbones import build_backbone
from dfmsd.detectors.build.pyramid import PyramidBackbone, layers_up_to

BACKBONES = (
    "mobilenetv3_small_050",
    "resnet10t",
    "convnext_atto",
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/regnet_y_400mf",
)


@pytest.mark.parametrize("name", BACKBONES)
def test_layers_up_to_a_stride_include_their_submodules(name: str) -> None:
    body = build_backbone(name, (8, 16, 32)).body
    at_4, at_8 = ({id(p) for module in layers_up_to(body, s) for p in module.parameters()} for s in (4, 8))
    first = [id(parameter) in at_4 for parameter in body.parameters()]
    assert first == sorted(first, reverse=True)
    assert 0 < sum(first) < len(first)
    assert at_4 < at_8


def test_the_layers_up_to_stride_4_of_a_resnet_are_its_stem_and_first_stage() -> None:
    body = build_backbone("resnet18", (8, 16, 32)).body
    layers = layers_up_to(body, 4)
    ends = [name for name, module in body.named_children() if module in layers]
    assert ends == ["conv1", "bn1", "act1", "maxpool", "layer1"]


def test_frozen_layers_keep_weights_and_statistics_in_training() -> None:
    backbone = build_backbone("mobilenetv3_small_050", (8, 16, 32))
    extra = LastLevelMaxPool()
    pyramid = PyramidBackbone(backbone.body, backbone.channels, 16, extra, frozen_stride=4).train()
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    frozen = {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in pyramid.parameters() if p.requires_grad], lr=0.1)
    sum(value.square().mean() for value in pyramid(torch.rand(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    changed = {name for name, value in pyramid.state_dict().items() if not torch.equal(value, before[name])}
    # the second stage widens the map before it makes it coarser
    first = ("body.conv_stem.", "body.bn1.", "body.blocks.0.", "body.blocks.1.0.conv_pw.", "body.blocks.1.0.bn1.")
    assert frozen == {name for name in frozen if name.startswith(first)} != set()
    assert not {name for name in changed if name.startswith(first)}
    assert {"body.blocks.1.0.conv_dw.weight", "body.blocks.1.0.bn2.running_mean"} < changed
