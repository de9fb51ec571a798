"""Detectors that dfmsd builds itself: a backbone, a neck and a head of torchvision's parts, at any width."""

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

from dfmsd.detectors.base import DETECTIONS_PER_IMAGE, SCORE_THRESHOLD, Detector
from dfmsd.detectors.build.backbones import Backbone, PyramidBackbone, build_backbone
from dfmsd.detectors.build.ssdlite import STRIDES, SSDLiteBackbone
from dfmsd.detectors.config import HUGGING_FACE, MMDET, PYTHON, DetectorConfig
from dfmsd.detectors.huggingface.files import build_transformers
from dfmsd.detectors.mmdet.files import build_mmdet
from dfmsd.detectors.torchvision.base import read_levels
from dfmsd.detectors.torchvision.gfl import GFL, GFLHead
from dfmsd.detectors.torchvision.models import TorchvisionModel, build_torchvision
from dfmsd.detectors.torchvision.wrap import wrap_torchvision
from dfmsd.errors import DfmsdError

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
"""Cells per side of a pooled region."""
REGIONS_PER_IMAGE = 128
"""Regions that train the box head, a quarter of torchvision's: on a CPU, pooling 512 costs more than the network."""

SSD_SIZE = 320
"""Side in pixels of the image that SSDLite's `anchor_scale` refers to."""
LARGEST_BOX = 0.95
"""Scale of the default boxes of SSDLite's coarsest level, as a fraction of the image's side; torchvision's."""
SSD_NMS_THRESHOLD = 0.55

START_DISTANCE = 1.0
"""In strides, of an untrained FCOS head's box sides from their point."""


def build_detector(config: DetectorConfig, class_names: Sequence[str]) -> Detector:
    """Build a detector with fresh heads, in train mode.

    Raises:
        DfmsdError: if the configuration cannot be built; says which key.
    """
    if not class_names:
        raise DfmsdError("a detector needs at least one class name: check `categories` of the annotation file")
    if config.arch.startswith(HUGGING_FACE):
        return build_transformers(config, class_names)
    if config.arch.startswith(MMDET):
        return build_mmdet(config, class_names)
    if config.arch.startswith(PYTHON):
        raise DfmsdError(
            f"arch: {config.arch} is a module of somebody's own, which a config cannot build; give it in Python, as a "
            "ModuleDetector, to dfmsd.distill(student=...)"
        )
    detector = wrap_torchvision(build_model(config, len(class_names)), class_names)
    detector.config = config
    return detector


def check_frozen(config: DetectorConfig) -> None:
    """Refuse to train a detector with layers that would stay random.

    Raises:
        DfmsdError: it has frozen layers and no pretrained weights.
    """
    if config.frozen_stride and config.pretrained is False:
        raise DfmsdError(
            f"frozen_stride: {config.frozen_stride} would keep random weights; set pretrained, or frozen_stride to 0"
        )


def build_model(config: DetectorConfig, num_classes: int) -> TorchvisionModel:
    """Build the plain torchvision model for ``num_classes`` classes, background not counted.

    Raises:
        DfmsdError: if the configuration cannot be built; says which key.
    """
    _check(config)
    return DETECTORS.get(config.arch, build_torchvision)(config, num_classes)


def build_fcos(config: DetectorConfig, num_classes: int) -> FCOS:
    """Build FCOS on strides 8 to 128, the last two made of P5; NMS at IoU 0.6 (torchvision's)."""
    backbone = build_backbone(config.backbone, (8, 16, 32), config.pretrained)
    pyramid = _pyramid(backbone, config, LastLevelP6P7(config.fpn_channels, config.fpn_channels))
    # The anchor is FCOS's point, with the stride as its size: torchvision derives the scale ranges from it.
    anchors = _anchors([(float(stride),) for stride in _strides(pyramid)], ratios=(1.0,))
    head = _FCOSHead(config.fpn_channels, num_classes, config.head_convs)
    return FCOS(pyramid, num_classes, anchor_generator=anchors, head=head, **_detect_options(), **_pixels(backbone))


def build_retinanet(config: DetectorConfig, num_classes: int) -> RetinaNet:
    """Build RetinaNet on strides 8 to 128, the last two made of C5; NMS at IoU 0.5 (torchvision's)."""
    backbone = build_backbone(config.backbone, (8, 16, 32), config.pretrained)
    pyramid = _pyramid(backbone, config, LastLevelP6P7(backbone.channels[-1], config.fpn_channels))
    octaves = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    sizes = [tuple(config.anchor_scale * stride * octave for octave in octaves) for stride in _strides(pyramid)]
    anchors = _anchors(sizes, ASPECT_RATIOS)
    head = _RetinaNetHead(config.fpn_channels, len(octaves) * len(ASPECT_RATIOS), num_classes, config.head_convs)
    return RetinaNet(
        pyramid, num_classes, anchor_generator=anchors, head=head, **_detect_options(), **_pixels(backbone)
    )


def build_gfl(config: DetectorConfig, num_classes: int) -> GFL:
    """Build GFL on strides 8 to 128, the last two made of P5, with one square anchor a cell; NMS at IoU 0.6."""
    backbone = build_backbone(config.backbone, (8, 16, 32), config.pretrained)
    pyramid = _pyramid(backbone, config, LastLevelP6P7(config.fpn_channels, config.fpn_channels))
    strides = _strides(pyramid)
    anchors = _anchors([(config.anchor_scale * stride,) for stride in strides], ratios=(1.0,))
    norm = _group_norm(config.fpn_channels)
    head = GFLHead(config.fpn_channels, num_classes, config.head_convs, len(strides), config.anchor_scale, norm)
    return GFL(pyramid, num_classes, anchor_generator=anchors, head=head, **_detect_options(), **_pixels(backbone))


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
        **_detect_options(prefix="box_"),
        **_pixels(backbone),
    )


def build_ssdlite(config: DetectorConfig, num_classes: int) -> SSD:
    """Build SSDLite on strides 16 to 512, the last four made of C5; NMS at IoU 0.55 (torchvision's).

    Raises:
        DfmsdError: widths or default boxes that there are not.
    """
    if config.fpn_channels < 2:
        raise DfmsdError(f"fpn_channels must be at least 2 for ssdlite, got {config.fpn_channels}")
    smallest = config.anchor_scale * STRIDES[0] / SSD_SIZE
    if smallest >= LARGEST_BOX:
        raise DfmsdError(
            f"anchor_scale must be below {LARGEST_BOX * SSD_SIZE / STRIDES[0]:g} for ssdlite, got {config.anchor_scale}"
        )
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
        **_detect_options(),
        **_pixels(backbone),
    )


DETECTORS: dict[str, Callable[[DetectorConfig, int], TorchvisionModel]] = {
    "fcos": build_fcos,
    "retinanet": build_retinanet,
    "gfl": build_gfl,
    "faster_rcnn": build_faster_rcnn,
    "ssdlite": build_ssdlite,
}
"""``arch`` -> builder of the plain model; besides, there are torchvision's own, `torchvision_archs`."""


class _FCOSHead(FCOSHead):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's FCOS head at any width, where its normalisation asks for 32 channels, with boxes of some size."""

    def __init__(self, channels: int, num_classes: int, num_convs: int) -> None:
        nn.Module.__init__(self)
        norm = _group_norm(channels)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.classification_head = FCOSClassificationHead(channels, 1, num_classes, num_convs, norm_layer=norm)
        self.regression_head = FCOSRegressionHead(channels, 1, num_convs, norm_layer=norm)
        # Distances go through a ReLU. From torchvision's 0 half of them start without a gradient, and it was seen that
        # all of them died in the first 150 steps: boxes without area from then on.
        nn.init.constant_(self.regression_head.bbox_reg.bias, START_DISTANCE)


class _RetinaNetHead(RetinaNetHead):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's RetinaNet head with group normalisation, as in its V2, and any number of convolutions."""

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
    if groups == channels > 1:  # one channel alone would be nothing to normalise over where a level is 1 x 1
        groups //= 2
    return partial(nn.GroupNorm, groups)


def _pyramid(backbone: Backbone, config: DetectorConfig, extra: ExtraFPNBlock) -> PyramidBackbone:
    return PyramidBackbone(backbone.body, backbone.channels, config.fpn_channels, extra, config.frozen_stride)


def _strides(pyramid: PyramidBackbone) -> list[int]:
    return [level.stride for level in read_levels(pyramid)]


def _anchors(sizes: Sequence[tuple[float, ...]], ratios: tuple[float, ...]) -> AnchorGenerator:
    return AnchorGenerator(tuple(sizes), (ratios,) * len(sizes))


def _detect_options(prefix: str = "") -> dict[str, float]:
    return {f"{prefix}score_thresh": SCORE_THRESHOLD, f"{prefix}detections_per_img": DETECTIONS_PER_IMAGE}


def _pixels(backbone: Backbone) -> dict[str, Any]:
    return {"image_mean": list(backbone.mean), "image_std": list(backbone.std)}


def _check(config: DetectorConfig) -> None:
    for key in ("fpn_channels", "head_convs", "anchor_scale"):
        value = getattr(config, key)
        if not value > 0:
            raise DfmsdError(f"{key} must be positive, got {value}")
    if config.frozen_stride < 0:
        raise DfmsdError(f"frozen_stride: {config.frozen_stride} is no stride; give 0 or one such as 4")
