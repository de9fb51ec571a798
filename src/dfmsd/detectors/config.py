"""What a user may say about a detector that dfmsd builds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

from dfmsd.errors import DfmsdError

OWN_ARCHS = ("fcos", "retinanet", "gfl", "faster_rcnn", "ssdlite")
"""What dfmsd builds on any backbone."""
KEYPOINTS = "keypointrcnn"
HUGGING_FACE = "hf:"
"""What the name of a model of transformers begins with."""
MMDET = "mmdet:"
"""What the paths of a config and a checkpoint of MMDetection begin with."""
PYTHON = "python:"
"""What stands before the class of a module that only its own program can build."""
PREFIXES = (HUGGING_FACE, MMDET, PYTHON)


@cache
def torchvision_archs() -> tuple[str, ...]:
    """Give torchvision's own detectors, by the names of their builders."""
    from torchvision import models  # here, since it takes as long to import as torch

    names = models.list_models(module=models.detection)
    return tuple(name for name in names if not name.startswith(KEYPOINTS))


@dataclass
class DetectorConfig:
    """What a detector is made of.

    Attributes:
        arch: the family of heads: ``fcos``, ``retinanet``, ``gfl``, ``faster_rcnn`` or ``ssdlite``; or one of
            torchvision's detectors, see ``dfmsd list detectors``, or ``hf:`` and the folder or hub id of an RT-DETR,
            RT-DETRv2 or D-FINE of Hugging Face transformers, or ``mmdet:`` and the config of a detector of MMDetection,
            after a comma its checkpoint; for these three no other key but ``pretrained`` applies.
        backbone: a timm name, or ``torchvision/<name>``; see ``dfmsd list backbones``.
        fpn_channels: width of the feature pyramid and of the heads; of SSDLite, which has no pyramid, width of the
            coarsest of its four further levels, the others having twice and four times as many channels.
        head_convs: convolutions in each tower of an FCOS, RetinaNet or GFL head; the other two have no such towers.
        pretrained: ImageNet weights of the backbone: false, true, or the path of a state-dict file. With ``hf:`` true
            stands for the weights beside the model's config, with ``mmdet:`` for the checkpoint, those of its head
            included where the classes are equal.
        frozen_stride: layers of the backbone that work at this stride or a finer one keep their pretrained weights and
            statistics, which spares the most expensive part of the backward pass; 0 trains them all, 4 is usual.
        anchor_scale: side of a level's smallest square anchor, in strides, for RetinaNet, GFL and Faster R-CNN. With
            4, RetinaNet's and GFL's anchors start at 32 pixels (torchvision's default for RetinaNet; GFL's official 8
            is meant for images of 800 pixels) and Faster R-CNN's at 16 (torchvision's 32 is meant for such images
            too). SSDLite's boxes are fractions of the image: its smallest has this many strides of the finest level
            in an image of 320 pixels, with 4 a fifth of the side (torchvision's). FCOS has no anchors to choose.
    """

    arch: str = "fcos"
    backbone: str = "mobilenetv3_small_050"
    fpn_channels: int = 64
    head_convs: int = 4
    pretrained: bool | str = False
    frozen_stride: int = 0
    anchor_scale: float = 4.0

    def __post_init__(self) -> None:
        """Refuse a detector that there is not.

        Raises:
            DfmsdError: an unknown `arch`.
        """
        if self.arch in OWN_ARCHS or self.arch.startswith(PREFIXES):
            return
        if self.arch not in torchvision_archs():
            raise DfmsdError(
                f"unknown arch {self.arch!r}: expected one of {', '.join(OWN_ARCHS)}, of torchvision's"
                f" {', '.join(torchvision_archs())}, {MMDET}<config>,<checkpoint> or {HUGGING_FACE}<folder or id>"
            )


def check_whole(config: DetectorConfig) -> None:
    """Refuse keys that say how to make a detector, for a model that is taken as a whole.

    Raises:
        DfmsdError: another key than ``arch`` and ``pretrained`` differs from its default.
    """
    names = [field.name for field in fields(config) if field.name not in ("arch", "pretrained")]
    default = DetectorConfig()
    changed = [name for name in names if getattr(config, name) != getattr(default, name)]
    if changed:
        raise DfmsdError(f"{', '.join(changed)}: {config.arch} brings its own backbone and heads; leave out these keys")
