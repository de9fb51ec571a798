"""Configuration of a detector that dfmsd builds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

import numpy as np

from dfmsd.detectors.frameworks import FRAMEWORKS
from dfmsd.errors import DfmsdError, suggest
from dfmsd.utils.coerce import AUTO, expand_home

Start = Literal["random", "backbone", "trained"]
"""What of a detector is trained before the first step: nothing, the backbone, or all of it."""
OWN_ARCHS = ("fcos", "retinanet", "gfl", "faster_rcnn", "ssdlite")
"""Architectures that dfmsd builds on any backbone."""
DENSE_ARCHS = ("fcos", "retinanet", "gfl")
"""Those of them with a head of `head_convs` convolutions on every level."""
DEFAULT_ARCH, DEFAULT_BACKBONE = "fcos", "mobilenetv3_small_050"
KEYPOINTS = "keypointrcnn"
PYTHON = "python:"
"""Prefix of the class of a module that only its own program can build."""
SSDLITE_SCALE_LIMIT = 19.0
"""Upper bound of SSDLite's `anchor_scale`: its smallest boxes would be as large as its largest ones."""


@cache
def torchvision_archs() -> tuple[str, ...]:
    """Return torchvision's own detectors, by the names of their builders."""
    from torchvision import models  # here, since it takes as long to import as torch

    names = models.list_models(module=models.detection)
    return tuple(name for name in names if not name.startswith(KEYPOINTS))


@dataclass
class DetectorConfig:
    """Architecture and initial weights of a detector.

    Attributes:
        arch: the architecture: ``fcos``, ``retinanet``, ``gfl``, ``faster_rcnn`` or ``ssdlite``; or one of
            torchvision's detectors, see ``dfmsd list detectors``, or ``hf:`` and the folder or hub id of an RT-DETR,
            RT-DETRv2, D-FINE, DEIMv2, LW-DETR, RF-DETR or Deformable DETR of Hugging Face transformers, or ``mmdet:``
            and the config of a detector of MMDetection, after a comma its checkpoint, or ``ultralytics:`` and a
            checkpoint or YAML file of its YOLO; for these four no other key but ``pretrained`` applies. ``auto`` is
            that of the detector that ``init`` names, else ``fcos``.
        backbone: a timm name, or ``torchvision/<name>``; see ``dfmsd list backbones``. ``auto`` is that of the detector
            that ``init`` names, else ``mobilenetv3_small_050``.
        fpn_channels: width of the feature pyramid and of the heads. SSDLite has no pyramid: there it is the width of
            the coarsest of its four extra levels, of which the others have twice and four times as many channels.
        head_convs: convolutions in each tower of an FCOS, RetinaNet or GFL head; the other two have no such towers.
        pretrained: ImageNet weights of the backbone: false, true, or the path of a state-dict file. With ``hf:``, true
            loads the weights next to the model's config, with ``mmdet:`` and ``ultralytics:`` the checkpoint, including
            those of the head of classes with the same name.
        init: a trained detector of the same architecture whose weights the detector starts with: a run folder, a
            student file, a checkpoint in a run folder, the name of torchvision weights such as
            ``FCOS_ResNet50_FPN_Weights.COCO_V1``, or ``torchvision:BUILDER,WEIGHTS.pth,CLASSES.txt``. ``arch`` and
            its keys may then be left out. Its classes may be others: of the layers that depend on them, the weights of
            classes with the same name are kept. ``hf:``, ``mmdet:`` and ``ultralytics:`` references are short for that
            ``arch`` with ``pretrained: true``.
        frozen_stride: layers of the backbone at this stride or a finer one keep their pretrained weights and
            statistics, which saves the most expensive part of the backward pass; 0 trains all layers, 4 is common.
        anchor_scale: side of a level's smallest square anchor, in strides, for RetinaNet, GFL and Faster R-CNN. With
            4, RetinaNet's and GFL's anchors start at 32 pixels (torchvision's default for RetinaNet; GFL's official 8
            is meant for images of 800 pixels) and Faster R-CNN's at 16 (torchvision's 32 is meant for such images
            too). SSDLite's boxes are fractions of the image: its smallest has this many strides of the finest level
            in an image of 320 pixels, with 4 a fifth of the side (torchvision's). FCOS has no anchors to choose.
    """

    arch: str = AUTO
    backbone: str = AUTO
    fpn_channels: int = 64
    head_convs: int = 4
    pretrained: bool | str = False
    frozen_stride: int = 0
    anchor_scale: float = 4.0
    init: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            DfmsdError: a value is impossible, or has no meaning for this architecture.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                setattr(self, field.name, value.item())
            else:
                setattr(self, field.name, expand_home(value))
        if self.init is None:
            self.arch = DEFAULT_ARCH if self.arch == AUTO else self.arch
            self.backbone = DEFAULT_BACKBONE if self.backbone == AUTO else self.backbone
        self._check_arch()
        ssdlite = self.arch == "ssdlite"
        narrowest, largest = (2, SSDLITE_SCALE_LIMIT) if ssdlite else (1, math.inf)
        requirements = {
            "backbone": (_is_name(self.backbone), "the name of a model"),
            "fpn_channels": (_is_integer(self.fpn_channels, narrowest), f"an integer of at least {narrowest}"),
            "head_convs": (_is_integer(self.head_convs, 1), "an integer of at least 1"),
            "pretrained": (isinstance(self.pretrained, bool) or _is_name(self.pretrained), "true, false or a path"),
            "init": (self.init is None or _is_name(self.init), "a run folder, a file or the name of weights"),
            "frozen_stride": (_is_integer(self.frozen_stride, 0), "0 or a stride such as 4"),
            "anchor_scale": (
                _is_number(self.anchor_scale) and 0 < self.anchor_scale < largest,
                "a number above 0" + f" and below {largest:g}" * ssdlite,
            ),
        }
        for key, (valid, expected) in requirements.items():
            if not valid:
                hint = " for ssdlite" if ssdlite and key in ("fpn_channels", "anchor_scale") else ""
                raise DfmsdError(f"{key} must be {expected}{hint}, got {getattr(self, key)!r}")
        self._check_weights()

    @property
    def start(self) -> Start:
        """What is trained before the first step; detectors of other libraries count as trained."""
        if self.arch not in OWN_ARCHS or self.init is not None:
            return "trained"
        return "random" if self.pretrained is False else "backbone"

    def changed(self) -> list[str]:
        """Return the keys whose values are not the defaults."""
        defaults = DetectorConfig()
        unstated = {field.name: (field.default, getattr(defaults, field.name)) for field in fields(self)}
        return [key for key, values in unstated.items() if getattr(self, key) not in values]

    def _check_weights(self) -> None:
        if self.init is not None and self.pretrained is not False:
            raise DfmsdError(
                f"init and pretrained: {self.init} brings the weights of its backbone too; leave out one of the two"
            )
        if isinstance(self.pretrained, str) and is_weights_name(self.pretrained):
            raise DfmsdError(
                f"pretrained: {self.pretrained} is the name of weights; for those of a whole detector set init to it,"
                " for those of a backbone set pretrained to true or the path of a file"
            )

    def _check_arch(self) -> None:
        if not isinstance(self.arch, str):
            raise DfmsdError(f"arch must be the name of an architecture, got {self.arch!r}")
        if self.arch in (*OWN_ARCHS, AUTO):
            return
        if not self.arch.startswith((*FRAMEWORKS, PYTHON)) and self.arch not in torchvision_archs():
            usages = " or ".join(framework.usage for framework in FRAMEWORKS.values())
            theirs = torchvision_archs()
            expected = f"expected one of {', '.join(OWN_ARCHS)}, of torchvision's {', '.join(theirs)}, or {usages}"
            hint = suggest(self.arch, [*OWN_ARCHS, *theirs], expected)
            raise DfmsdError(f"unknown arch {self.arch!r}: {hint}")
        changed = [key for key in self.changed() if key not in ("arch", "pretrained", "init")]
        if changed:
            raise DfmsdError(
                f"{', '.join(changed)}: {self.arch} brings its own backbone and heads; leave out these keys"
            )


def read_detector_config(value: DetectorConfig | str) -> DetectorConfig:
    """Read a detector's short form: ``<arch>`` or, of `OWN_ARCHS`, ``<arch>/<backbone>``.

    Raises:
        DfmsdError: neither a config nor a name, or an unknown one.
    """
    if isinstance(value, DetectorConfig):
        return value
    if not isinstance(value, str):
        raise DfmsdError(f"a detector is a DetectorConfig or a name such as fcos/resnet18, got {value!r}")
    arch, _, backbone = value.partition("/")
    return DetectorConfig(arch, backbone) if backbone and arch in OWN_ARCHS else DetectorConfig(value)


def is_weights_name(reference: str) -> bool:
    """Return whether a reference has the form of a weight name, such as ``FCOS_ResNet50_FPN_Weights.COCO_V1``."""
    return re.fullmatch(r"\w+_Weights\.\w+", reference) is not None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest
