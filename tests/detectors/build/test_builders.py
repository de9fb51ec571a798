"""Detectors built from a configuration: their levels, widths and anchors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection.retinanet import _default_anchorgen

from dfmsd.detectors import DETECTORS, DetectorConfig, build_detector, check_frozen
from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

SMALL = DetectorConfig(fpn_channels=16, head_convs=2)


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "torchvision/mobilenet_v3_small"])
@pytest.mark.parametrize(("arch", "first"), [("fcos", 3), ("retinanet", 3), ("gfl", 3), ("faster_rcnn", 2)])
def test_levels_are_five_powers_of_two(arch: str, first: int, backbone: str) -> None:
    detector = build_detector(replace(SMALL, arch=arch, backbone=backbone), ["a"])
    shapes = [level._replace(sizes=None) for level in detector.levels]
    assert shapes == [LevelSpec(f"p{n}", 16, 2**n) for n in range(first, first + 5)]
    assert detector.class_names == ("a",)
    assert detector.training


@pytest.mark.parametrize("arch", list(DETECTORS))
def test_the_backbone_is_what_imagenet_weights_exist_for(arch: str) -> None:
    detector = build_detector(replace(SMALL, arch=arch), ["a"])
    layers = detector.backbone_layers()
    assert layers is not None
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    names = [name for name, parameter in detector.named_parameters() if id(parameter) in inside]
    assert names == [name for name, _ in detector.named_parameters() if name.startswith("model.backbone.body.")]
    assert names


@pytest.mark.parametrize("arch", list(DETECTORS))
def test_any_width_is_built(arch: str) -> None:
    detector = build_detector(replace(SMALL, arch=arch, fpn_channels=20), ["a"]).eval()
    norms = [module for module in detector.modules() if isinstance(module, nn.GroupNorm)]
    assert all(norm.num_groups == 4 for norm in norms)  # the largest divisor of 20 and 32
    level, side = ("p9", 1) if arch == "ssdlite" else ("p3", 8)
    assert detector.features(torch.rand(1, 3, 64, 64))[level].shape == (1, 20, side, side)


@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
@pytest.mark.parametrize("channels", [2, 16, 32])
def test_a_single_cell_of_a_narrow_pyramid_is_not_normalized_away(arch: str, channels: int) -> None:
    detector = build_detector(replace(SMALL, arch=arch, fpn_channels=channels), ["a"]).eval()
    image, heads = torch.rand(1, 3, 64, 64), []  # the coarsest level is 1 x 1
    for norm in (module for module in detector.modules() if isinstance(module, nn.GroupNorm)):
        norm.register_forward_hook(lambda _module, _args, output: heads.append(output))
    detector.detect(image, [(64, 64)])
    single = [output for output in heads if output.shape[-2:] == (1, 1)]
    assert single
    assert all(output.abs().max() > 0 for output in single)


@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
@pytest.mark.parametrize("convs", [1, 3, 5])
def test_towers_have_the_configured_depth(arch: str, convs: int) -> None:
    head = build_detector(replace(SMALL, arch=arch, head_convs=convs), ["a", "b"]).model.head
    for part in (head.classification_head, head.regression_head):
        assert sum(isinstance(layer, nn.Conv2d) for layer in part.conv.modules()) == convs
    weights = torch.cat([p.flatten() for n, p in head.named_parameters() if "conv" in n and p.ndim == 4])
    assert weights.std().item() == pytest.approx(0.01, rel=0.1)


def test_retinanet_anchors_are_torchvisions_at_the_default_scale() -> None:
    generator = build_detector(replace(SMALL, arch="retinanet"), ["a"]).model.anchor_generator
    for got, expected in zip(generator.cell_anchors, _default_anchorgen().cell_anchors, strict=True):
        assert (got - expected).abs().max() <= 1  # torchvision truncates its octaves to whole pixels


def test_anchors_scale_with_the_stride() -> None:
    detector = build_detector(replace(SMALL, arch="faster_rcnn", anchor_scale=2.0), ["a"])
    assert detector.model.rpn.anchor_generator.sizes == ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    fcos = build_detector(replace(SMALL, anchor_scale=2.0), ["a"])
    assert fcos.model.anchor_generator.sizes == ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))


def test_the_box_head_follows_the_width() -> None:
    narrow = build_detector(replace(SMALL, arch="faster_rcnn"), ["a", "b"]).model.roi_heads
    assert narrow.box_head.fc7.out_features == 256
    assert narrow.box_predictor.cls_score.out_features == 3
    assert narrow.box_predictor.bbox_pred.out_features == 12


def test_one_stage_heads_have_no_background() -> None:
    for arch in ("fcos", "retinanet"):
        head = build_detector(replace(SMALL, arch=arch), ["a", "b"]).model.head.classification_head
        assert head.num_classes == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnt18"}, r"unknown backbone 'resnt18'"),
        ({"pretrained": "none.pth"}, r"none\.pth does not exist"),
    ],
)
def test_missing_backbones_and_weights_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        build_detector(replace(SMALL, **change), ["a"])


def test_no_classes_are_refused() -> None:
    with pytest.raises(DfmsdError, match="at least one class name"):
        build_detector(SMALL, [])


def test_frozen_layers_need_pretrained_weights() -> None:
    check_frozen(DetectorConfig(frozen_stride=4, pretrained=True))
    check_frozen(DetectorConfig())
    with pytest.raises(DfmsdError, match="frozen_stride: 4 would keep random weights; set pretrained"):
        check_frozen(DetectorConfig(frozen_stride=4))


def test_a_detector_stays_frozen_in_train_mode() -> None:
    detector = build_detector(replace(SMALL, frozen_stride=4), ["thing"]).eval().train()
    body = detector.model.backbone.body
    assert not body.bn1.training
    assert body.blocks[3][0].bn1.training
    assert not next(body.parameters()).requires_grad


def test_every_side_of_an_untrained_fcos_box_has_a_gradient() -> None:
    detector = build_detector(SMALL, ["thing"])
    images, targets = (
        torch.rand(2, 3, 64, 64),
        [{"boxes": torch.tensor([[8.0, 8, 40, 48]]), "labels": torch.tensor([0])}],
    )
    head = detector.model.head.regression_head
    distances, _ = head(list(detector.features(images).values()))
    assert distances.min() > 0
    _, losses = detector(images, targets * 2)
    losses["bbox_regression"].backward()
    assert (head.bbox_reg.bias.grad != 0).all()
