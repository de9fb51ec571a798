"""torchvision's own detectors by the names of their builders, with untrained heads."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torchvision
from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights, ResNet50_Weights, VGG16_Weights
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.statedict import load_strictly, read_state_dict
from dfmsd.detectors.weights import download_weights
from dfmsd.errors import DfmsdError

TorchvisionModel: TypeAlias = FCOS | RetinaNet | FasterRCNN | SSD
"""A detector of torchvision, or built from its parts."""
IMAGENET = {
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "mobilenet_v3_large": MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    "vgg16": VGG16_Weights.IMAGENET1K_FEATURES,
}
"""Backbone, as in the names of the builders -> the weights that torchvision starts from."""
REDUCED = "ssdlite320"
"""Its backbone has half the channels in its last layers, which torchvision trained for detection only."""
WITHOUT_BACKGROUND = ("fcos", "retinanet")


def build_torchvision(config: DetectorConfig, num_classes: int) -> TorchvisionModel:
    """Build a torchvision detector for ``num_classes`` classes, background not counted.

    Differs from torchvision in training all layers of the backbone and their batch normalization, even with
    ``pretrained``, where torchvision freezes some, so that its layout does not depend on its initial weights.

    Raises:
        DfmsdError: The ImageNet weights are unavailable or do not fit.
    """
    model = build_untrained(config.arch, num_classes + has_background(config.arch))
    if config.pretrained is not False:
        _load_imagenet(model.backbone, config)
    return model


def build_untrained(arch: str, outputs: int) -> TorchvisionModel:
    """Build a torchvision detector with random weights.

    Args:
        arch: Name of its builder.
        outputs: Number of labels that it tells apart, the background included where the family has one.
    """
    model: TorchvisionModel = torchvision.models.get_model(
        arch, weights=None, weights_backbone=None, num_classes=outputs
    )
    return model


def has_background(arch: str) -> bool:
    """Return whether label 0 of a builder's detectors is the background."""
    return not arch.startswith(WITHOUT_BACKGROUND)


def _load_imagenet(backbone: nn.Module, config: DetectorConfig) -> None:
    """Copy a classifier's convolutions and normalization, which the backbone begins with in the same order."""
    if config.arch.startswith(REDUCED):
        raise DfmsdError(
            f"pretrained: there are no ImageNet weights of {config.arch}, whose backbone has half the channels in its"
            " last layers; set pretrained: false, or arch: ssdlite with backbone: torchvision/mobilenet_v3_large"
        )
    name, weights = next((name, weights) for name, weights in IMAGENET.items() if name in config.arch)
    with torch.device("meta"):  # without drawing random values that would be overwritten
        classifier = torchvision.models.get_model(name).to_empty(device="cpu")
    state = read_state_dict(config.pretrained) if isinstance(config.pretrained, str) else download_weights(weights)
    load_strictly(classifier, state, config.pretrained if isinstance(config.pretrained, str) else str(weights))
    for layer, trained in zip(_layers(backbone), _layers(classifier), strict=False):  # the backbone continues: its neck
        layer.load_state_dict(trained.state_dict())


def _layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
