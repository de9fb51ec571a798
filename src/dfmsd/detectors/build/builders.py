"""Architectures that dfmsd builds: a backbone, a neck and a head from torchvision's parts, at any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from dfmsd.detectors.base import DETECTIONS_PER_IMAGE, SCORE_THRESHOLD
from dfmsd.detectors.build.backbones import Backbone, build_backbone
from dfmsd.detectors.build.pyramid import PyramidBackbone
from dfmsd.detectors.build.ssdlite import STRIDES, SSDLiteBackbone
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.levels import read_levels
from dfmsd.detectors.torchvision.gfl import GFL, GFLHead

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
"""Cells per side of a pooled region."""
REGIONS_PER_IMAGE = 128
"""Regions that train the box head; torchvision's 512 cost more to pool on a CPU than the network itself."""

SSD_SIZE = 320
"""Side of the image that SSDLite's `anchor_scale` refers to, in pixels."""
LARGEST_BOX = 0.95
"""Scale of the default boxes on SSDLite's coarsest level, as a fraction of the image's side (torchvision's)."""
SSD_NMS_THRESHOLD = 0.55

START_DISTANCE = 1.0
"""Distance of an untrained FCOS head's box sides from their point, in strides."""


def build_fcos(config: DetectorConfig, num_classes: int) -> FCOS:
    """Build FCOS on strides 8 to 128, the last two computed from P5; NMS at IoU 0.6 (torchvision's)."""
    backbone = build_backbone(config.backbone, (8, 16, 32), config.pretrained)
    pyramid = _pyramid(backbone, config, LastLevelP6P7(config.fpn_channels, config.fpn_channels))
    # an anchor is FCOS's point, with the stride as its size: torchvision derives the scale ranges from it
    anchors = _anchors([(float(stride),) for stride in _strides(pyramid)], ratios=(1.0,))
    head = _FCOSHead(config.fpn_channels, num_classes, config.head_convs)
    return FCOS(pyramid, num_classes, anchor_generator=anchors, head=head, **_options(backbone))


def build_retinanet(config: DetectorConfig, num_classes: int) -> RetinaNet:
    """Build RetinaNet on strides 8 to 128, the last two computed from C5; NMS at IoU 0.5 (torchvision's)."""
    backbone = build_backbone(config.backbone, (8, 16, 32), config.pretrained)
    pyramid = _pyramid(backbone, config, LastLevelP6P7(backbone.channels[-1], config.fpn_channels))
    octaves = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    sizes = [tuple(config.anchor_scale * stride * octave for octave in octaves) for stride in _strides(pyramid)]
    anchors = _anchors(sizes, ASPECT_RATIOS)
    head = _RetinaNetHead(config.fpn_channels, len(octaves) * len(ASPECT_RATIOS), num_classes, config.head_convs)
    return RetinaNet(pyramid, num_classes, anchor_generator=anchors, head=head, **_options(backbone))


def build_gfl(config: DetectorConfig, num_classes: int) -> GFL:
    """Build GFL on strides 8 to 128, the last two computed from P5, one square anchor per cell; NMS at IoU 0.6."""
    backbone = build_backbone(config.backbone, (8, 16, 32), config.pretrained)
    pyramid = _pyramid(backbone, config, LastLevelP6P7(config.fpn_channels, config.fpn_channels))
    strides = _strides(pyramid)
    anchors = _anchors([(config.anchor_scale * stride,) for stride in strides], ratios=(1.0,))
    norm = _group_norm(config.fpn_channels)
    head = GFLHead(config.fpn_channels, num_classes, config.head_convs, len(strides), config.anchor_scale, norm)
    return GFL(pyramid, num_classes, anchor_generator=anchors, head=head, **_options(backbone))


def build_faster_rcnn(config: DetectorConfig, num_classes: int) -> FasterRCNN:
    """Build Faster R-CNN on strides 4 to 64, the last one a subsampled P5; NMS at IoU 0.5 (torchvision's).

    The box head is 256 wide on pyramids of up to 128 channels, and torchvision's 1024 on wider ones.
    """
    backbone = build_backbone(config.backbone, (4, 8, 16, 32), config.pretrained)
    pyramid = _pyramid(backbone, config, LastLevelMaxPool())
    anchors = _anchors([(config.anchor_scale * stride,) for stride in _strides(pyramid)], ASPECT_RATIOS)
    width = 256 if config.fpn_channels <= 128 else 1024
    pooled_maps = [str(i) for i in range(len(backbone.channels))]  # regions are not pooled from the subsampled level
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(pooled_maps, output_size=ROI_SIZE, sampling_ratio=2),
        box_head=TwoMLPHead(config.fpn_channels * ROI_SIZE**2, width),
        box_predictor=FastRCNNPredictor(width, num_classes + 1),
        box_batch_size_per_image=REGIONS_PER_IMAGE,
        **_options(backbone, prefix="box_"),
    )


def build_ssdlite(config: DetectorConfig, num_classes: int) -> SSD:
    """Build SSDLite on strides 16 to 512, the last four computed from C5; NMS at IoU 0.55 (torchvision's)."""
    smallest = config.anchor_scale * STRIDES[0] / SSD_SIZE
    backbone = build_backbone(config.backbone, STRIDES, config.pretrained)
    levels = SSDLiteBackbone(backbone, config.fpn_channels, config.frozen_stride)
    boxes = DefaultBoxGenerator([[2, 3]] * len(levels.out_channels), smallest, LARGEST_BOX)
    head = SSDLiteHead(levels.out_channels, boxes.num_anchors_per_location(), num_classes + 1, nn.BatchNorm2d)
    return SSD(
        levels,
        boxes,
        (SSD_SIZE, SSD_SIZE),
        num_classes + 1,
        head=head,
        nms_thresh=SSD_NMS_THRESHOLD,
        **_options(backbone),
    )


class _FCOSHead(FCOSHead):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's FCOS head at any width (its normalization needs a multiple of 32), with larger initial boxes."""

    def __init__(self, channels: int, num_classes: int, num_convs: int) -> None:
        nn.Module.__init__(self)
        norm = _group_norm(channels)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.classification_head = FCOSClassificationHead(channels, 1, num_classes, num_convs, norm_layer=norm)
        self.regression_head = FCOSRegressionHead(channels, 1, num_convs, norm_layer=norm)
        # Distances pass a ReLU. With torchvision's bias of 0, half of them start without a gradient, and runs were seen
        # in which all of them died in the first 150 steps, which leaves boxes without area.
        nn.init.constant_(self.regression_head.bbox_reg.bias, START_DISTANCE)


class _RetinaNetHead(RetinaNetHead):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's RetinaNet head with group normalization, as in its V2, and any number of convolutions."""

    def __init__(self, channels: int, num_anchors: int, num_classes: int, num_convs: int) -> None:
        super().__init__(channels, num_anchors, num_classes)
        self.classification_head.conv = _tower(channels, num_convs)
        self.regression_head.conv = _tower(channels, num_convs)


def _tower(channels: int, num_convs: int) -> nn.Sequential:
    norm = _group_norm(channels)
    tower = nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=norm) for _ in range(num_convs)))
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
    return tower


def _group_norm(channels: int) -> Callable[[int], nn.Module]:
    groups = math.gcd(32, channels)
    if groups == channels > 1:  # a group of one channel has zero variance where a level is 1 x 1
        groups //= 2
    return partial(nn.GroupNorm, groups)


def _pyramid(backbone: Backbone, config: DetectorConfig, extra: ExtraFPNBlock) -> PyramidBackbone:
    return PyramidBackbone(backbone.body, backbone.channels, config.fpn_channels, extra, config.frozen_stride)


def _strides(pyramid: PyramidBackbone) -> list[int]:
    return [int(level.stride) for level in read_levels(pyramid)]


def _anchors(sizes: Sequence[tuple[float, ...]], ratios: tuple[float, ...]) -> AnchorGenerator:
    return AnchorGenerator(tuple(sizes), (ratios,) * len(sizes))


def _options(backbone: Backbone, prefix: str = "") -> dict[str, Any]:
    """Return the thresholds of detections and the normalization of images."""
    return {
        f"{prefix}score_thresh": SCORE_THRESHOLD,
        f"{prefix}detections_per_img": DETECTIONS_PER_IMAGE,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }
