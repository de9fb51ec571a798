"""What a user may say about a detector that dfmsd builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class DetectorConfig:
    """What a detector is made of.

    Attributes:
        arch: the family of heads.
        backbone: a timm name, or ``torchvision/<name>``; see ``dfmsd list backbones``.
        fpn_channels: width of the feature pyramid and of the heads.
        head_convs: convolutions in each tower of an FCOS, RetinaNet or GFL head; Faster R-CNN has no such towers.
        pretrained: ImageNet weights of the backbone: false, true, or the path of a state-dict file.
        frozen_stride: layers of the backbone that work at this stride or a finer one keep their pretrained weights and
            statistics, which spares the most expensive part of the backward pass; 0 trains them all, 4 is usual.
        anchor_scale: side of a level's smallest square anchor, in strides, for RetinaNet, GFL and Faster R-CNN. With
            4, RetinaNet's and GFL's anchors start at 32 pixels (torchvision's default for RetinaNet; GFL's official 8
            is meant for images of 800 pixels) and Faster R-CNN's at 16 (torchvision's 32 is meant for such images
            too). FCOS has no anchors to choose.
    """

    arch: Literal["fcos", "retinanet", "gfl", "faster_rcnn"] = "fcos"
    backbone: str = "mobilenetv3_small_050"
    fpn_channels: int = 64
    head_convs: int = 4
    pretrained: bool | str = False
    frozen_stride: int = 0
    anchor_scale: float = 4.0
