"""Dense heads of FCOS, RetinaNet and GFL, cut into towers and predictors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetRegressionHead
from torchvision.models.detection.ssd import SSD

from dfmsd.detectors.dense import HeadSpec, Towers
from dfmsd.detectors.torchvision.gfl import GFL, GFLRegressionHead

_PARTS = {
    "fcos": (FCOSClassificationHead, FCOSRegressionHead),
    "retinanet": (RetinaNetClassificationHead, RetinaNetRegressionHead),
    "gfl": (FCOSClassificationHead, GFLRegressionHead),
}
ARCHS = {
    FCOS: "fcos",
    RetinaNet: "retinanet",
    GFL: "gfl",
    FasterRCNN: "faster_rcnn",
    MaskRCNN: "mask_rcnn",
    SSD: "ssd",
}
"""Class of a torchvision model -> its architecture."""


class TorchvisionHead:
    """The `DenseHead` of a model whose two branches are torchvision's or GFL's, at any width and depth.

    A tower is a sequence of convolution, normalization (if any) and ReLU. It is cut before a ReLU, as in the official
    CrossKD, whose convolution modules include the normalization.

    Args:
        model: The model with the head.
        class_names: Class names of the detector.
        strides: Strides of the levels.
        level: Index of the level to run on.
    """

    def __init__(
        self, model: FCOS | RetinaNet, class_names: Sequence[str], strides: Sequence[int], level: int = 0
    ) -> None:
        self.model = model
        self.class_names = tuple(class_names)
        self.strides = tuple(strides)
        self.level = level

    @property
    def spec(self) -> HeadSpec:
        """Architecture of the head."""
        predictor: nn.Conv2d = self._classification.cls_logits
        convs = min(len(_cuts(_layers(part.conv))) for part in (self._classification, self._regression))
        anchors = anchors_of(self.model)
        bins = self.model.box_coder.bins if isinstance(self.model, GFL) else 0
        arch, channels = arch_of(self.model), predictor.in_channels
        return HeadSpec(arch, self.class_names, self.strides, anchors, channels, convs, bins)

    def at(self, level: int) -> TorchvisionHead:
        """Return the head of one level, by its index."""
        return TorchvisionHead(self.model, self.class_names, self.strides, level)

    def towers(self, level: Tensor, reused: int) -> Towers:
        """Run the towers of one level up to the cut."""
        return Towers(*(_split(part.conv, reused)[0](level) for part in (self._classification, self._regression)))

    def predict(self, towers: Towers, reused: int) -> tuple[Tensor, Tensor]:
        """Return logits ``N x A x K`` and encoded boxes ``N x A x E``."""
        logits, box_deltas, _ = self._predict(towers, reused)
        return logits, box_deltas

    def outputs(self, towers: Towers, reused: int) -> dict[str, Tensor]:
        """Return the outputs of torchvision's head for one level: ``N x A x ...`` by name."""
        logits, box_deltas, regression = self._predict(towers, reused)
        outputs = {"cls_logits": logits, "bbox_regression": box_deltas}
        if isinstance(self.model, FCOS):
            outputs["bbox_ctrness"] = _per_anchor(self._regression.bbox_ctrness(regression), 1)
        return outputs

    def decode(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return xyxy boxes in input pixels, ``N x A x 4``."""
        anchors = anchors.to(box_deltas.dtype).expand(len(box_deltas), -1, -1)
        coder = self.model.box_coder
        if isinstance(self.model, FCOS):
            boxes: Tensor = coder.decode(box_deltas, anchors)
        else:
            boxes = coder.decode_single(box_deltas.flatten(0, 1), anchors.flatten(0, 1)).view_as(anchors)
        return boxes

    def _predict(self, towers: Towers, reused: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = zip((self._classification, self._regression), towers, strict=True)
        # not the tower's ReLU, which may work in place and would overwrite the compared feature
        classification, regression = (_split(part.conv, reused)[1](F.relu(value)) for part, value in parts)
        logits = self._classification.cls_logits(classification)
        box_deltas, values = self._box_deltas(regression)
        return _per_anchor(logits, self._classification.num_classes), _per_anchor(box_deltas, values), regression

    def _box_deltas(self, regression: Tensor) -> tuple[Tensor, int]:
        """Return encoded boxes, ``N x (a E) x H x W``, and ``E``."""
        if isinstance(self.model, GFL):
            return self._regression.predict(regression, self.level), 4 * self.model.box_coder.bins
        box_deltas = self._regression.bbox_reg(regression)
        return box_deltas.relu() if isinstance(self.model, FCOS) else box_deltas, 4

    @property
    def _classification(self) -> Any:
        return self.model.head.classification_head

    @property
    def _regression(self) -> Any:
        return self.model.head.regression_head


def can_be_cut(model: FCOS | RetinaNet) -> bool:
    """Return whether the head's branches are torchvision's or GFL's, with at least one convolution and ReLU each."""
    parts = (model.head.classification_head, model.head.regression_head)
    known = all(isinstance(part, kind) for part, kind in zip(parts, _PARTS[arch_of(model)], strict=True))
    return known and all(_cuts(_layers(part.conv)) for part in parts)


def arch_of(model: nn.Module) -> str:
    """Return a torchvision model's architecture, as ``arch`` in `DetectorConfig` if that has it."""
    return ARCHS[type(model)]


def anchors_of(model: Any) -> tuple[tuple[object, ...], ...]:
    """Return sizes and aspect ratios of a model's anchors on each level; SSD's sizes are fractions of the image."""
    if isinstance(model, SSD):
        boxes = model.anchor_generator
        return tuple((scale, tuple(r)) for scale, r in zip(boxes.scales, boxes.aspect_ratios, strict=False))
    generator = model.rpn.anchor_generator if isinstance(model, FasterRCNN) else model.anchor_generator
    return tuple((tuple(s), tuple(r)) for s, r in zip(generator.sizes, generator.aspect_ratios, strict=True))


def total_centerness(coder: Any, anchors: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
    r"""Sum $\sqrt{\frac{\min(l,r)}{\max(l,r)} \frac{\min(t,b)}{\max(t,b)}}$ over the points on objects.

    Args:
        coder: FCOS's box coder.
        anchors: ``A x 4``.
        boxes: Box of each point's object, ``N x A x 4``; any box for points without one.
        positive: Bool, ``N x A``: points on objects.
    """
    left, top, right, bottom = coder.encode(anchors.expand_as(boxes), boxes).unbind(-1)
    sides = ((left, right), (top, bottom))
    across, down = (torch.minimum(a, b) / torch.maximum(a, b) for a, b in sides)
    return torch.where(positive, (across * down).sqrt(), 0).sum()


def _layers(tower: nn.Module) -> list[nn.Module]:
    return [layer for layer in tower.modules() if not isinstance(layer, nn.Sequential)]


def _cuts(layers: Sequence[nn.Module]) -> list[int]:
    return [index for index, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]


def _split(tower: nn.Module, reused: int) -> tuple[nn.Sequential, nn.Sequential]:
    layers = _layers(tower)
    cut = _cuts(layers)[-1 - reused]
    return nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut + 1 :])


def _per_anchor(maps: Tensor, values: int) -> Tensor:
    """Reorder ``N x (a values) x H x W`` to torchvision's ``N x (H W a) x values``."""
    batch, _, height, width = maps.shape
    return maps.view(batch, -1, values, height, width).permute(0, 3, 4, 1, 2).flatten(1, 3)
