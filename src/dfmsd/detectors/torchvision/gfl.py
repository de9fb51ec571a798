"""GFL: a dense detector that predicts a distribution of each box side, built from torchvision's RetinaNet and FCOS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

from dfmsd.detectors.torchvision.gfl_loss import (
    Assignment,
    assign,
    distribution_focal_loss,
    pad_objects,
    quality_focal_loss,
    valuable_region,
)
from dfmsd.utils.boxes import elementwise_iou

BINS = 17
"""Bins of a side's distribution: 0 to 16 strides."""
NMS_THRESHOLD = 0.6
BOX_WEIGHT = 2.0
DISTRIBUTION_WEIGHT = 0.25
END_MARGIN = 0.1
"""Distance of a target from the last bin, so that it has a bin on either side."""

Targets = Sequence[dict[str, Tensor]]


class DistributionCoder:
    """Boxes as four distances from an anchor's center, each a distribution over ``bins`` strides.

    Args:
        anchor_scale: Side of an anchor in strides.
        bins: Number of bins, at 0, 1, ... ``bins - 1`` strides.
    """

    def __init__(self, anchor_scale: float, bins: int = BINS) -> None:
        self.anchor_scale = anchor_scale
        self.bins = bins

    def integral(self, box_deltas: Tensor) -> Tensor:
        """Convert logits ``... x (4 bins)`` to expected distances left, top, right, bottom in strides, ``... x 4``."""
        steps = torch.arange(self.bins, dtype=box_deltas.dtype, device=box_deltas.device)
        # not a matrix product, which autocast would run in half precision
        return (torch.unflatten(box_deltas, -1, (4, self.bins)).softmax(dim=-1) * steps).sum(dim=-1)

    def decode_single(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """Decode xyxy boxes in pixels, ``... x 4``.

        Args:
            box_deltas: Logits, ``... x (4 bins)``.
            anchors: ``... x 4``, xyxy in pixels.
        """
        centers, stride = self._grid(anchors)
        near, far = (self.integral(box_deltas) * stride).chunk(2, dim=-1)
        return torch.cat([centers - near, centers + far], dim=-1)

    def encode_single(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Encode boxes as distances of their sides in strides, clamped to the bins, ``... x 4``."""
        centers, stride = self._grid(anchors)
        distances = torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], dim=-1) / stride
        return distances.clamp(min=0, max=self.bins - 1 - END_MARGIN)

    def _grid(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return centers ``... x 2`` and strides ``... x 1``, up to torchvision's rounding of anchors to pixels."""
        return (anchors[..., :2] + anchors[..., 2:]) / 2, (anchors[..., 2:3] - anchors[..., :1]) / self.anchor_scale


class GFLRegressionHead(FCOSRegressionHead):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's FCOS tower with logits of the sides' distributions instead of boxes and centerness."""

    def __init__(self, channels: int, num_convs: int, levels: int, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__(channels, 1, num_convs, norm_layer)
        del self.bbox_ctrness
        self.bbox_reg = nn.Conv2d(channels, 4 * BINS, kernel_size=3, padding=1)
        nn.init.normal_(self.bbox_reg.weight, std=0.01)
        nn.init.zeros_(self.bbox_reg.get_parameter("bias"))
        self.scales = nn.Parameter(torch.ones(levels))

    def forward(self, x: list[Tensor]) -> Tensor:
        """Return the logits of all levels, ``N x A x (4 bins)``."""
        maps = [self.predict(self.conv(level), index) for index, level in enumerate(x)]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)

    def predict(self, feature: Tensor, level: int) -> Tensor:
        """Return the logits of one level, ``N x (4 bins) x H x W``, from its tower's last feature."""
        logits: Tensor = self.scales[level] * self.bbox_reg(feature)
        return logits


class GFLHead(nn.Module):
    """Two towers on each level: class scores, which are also the box's quality, and a distribution of each side.

    Its branches have the names of torchvision's FCOS head.

    Args:
        channels: Channels of the pyramid and the towers.
        num_classes: Number of classes, without the background.
        num_convs: Convolutions in each tower.
        levels: Number of levels; each has a learnable scale of its distance logits.
        anchor_scale: Side of an anchor in strides.
        norm_layer: Normalization of the towers.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_convs: int,
        levels: int,
        anchor_scale: float,
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.box_coder = DistributionCoder(anchor_scale)
        self.classification_head = FCOSClassificationHead(channels, 1, num_classes, num_convs, norm_layer=norm_layer)
        self.regression_head = GFLRegressionHead(channels, num_convs, levels, norm_layer)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Return the logits of all levels: ``cls_logits`` ``N x A x K``, ``bbox_regression`` ``N x A x (4 bins)``."""
        return {"cls_logits": self.classification_head(x), "bbox_regression": self.regression_head(x)}

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        r"""Compute the losses ``classification`` (quality focal), ``bbox_regression`` (GIoU) and ``distribution``.

        The first is divided by the number of anchors with an object, at least 1 per image; the other two weight each
        such anchor by its highest class score and are divided by the sum of the weights, at least 1. All terms are
        computed for every anchor, so that no shape depends on data and a GPU never synchronizes with the host.

        Args:
            targets: ``boxes`` and ``labels`` of each image; with ``scores``, a box's quality is its overlap times its
                object's score.
            head_outputs: Result of `forward`, in float32.
            anchors: Anchors of each image, ``A x 4``; all the same.
            matched_idxs: Index of each anchor's object in each image, ``A``, below 0 for background.
        """
        logits, box_deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        boxes, labels = pad_objects([t["boxes"] for t in targets], [t["labels"] for t in targets])
        matched = torch.stack(matched_idxs)
        positive, index = matched >= 0, matched.clamp(min=0)
        matched_boxes = boxes.gather(1, index.unsqueeze(2).expand(-1, -1, 4))
        weight = logits.detach().sigmoid().amax(dim=2) * positive
        overlap = elementwise_iou(self.box_coder.decode_single(box_deltas, anchors[0]), matched_boxes)
        quality = (overlap.iou.detach() * positive * _scores(targets, index)).unsqueeze(2)
        quality = torch.zeros_like(logits).scatter_(2, labels.gather(1, index).unsqueeze(2), quality)
        sides = torch.unflatten(box_deltas, 2, (4, self.box_coder.bins))
        distances = self.box_coder.encode_single(matched_boxes, anchors[0])
        distribution = distribution_focal_loss(sides, distances).mean(dim=2)
        total = weight.sum().clamp(min=1)
        return {
            "classification": quality_focal_loss(logits, quality) / positive.sum(dim=1).clamp(min=1).sum(),
            "bbox_regression": BOX_WEIGHT * (weight * (1 - overlap.giou)).sum() / total,
            "distribution": DISTRIBUTION_WEIGHT * (weight * distribution).sum() / total,
        }


def _scores(targets: Targets, index: Tensor) -> Tensor | float:
    """Return the score of each anchor's object, ``N x A``; 1 without scores."""
    if "scores" not in targets[0]:
        return 1.0
    scores = pad_sequence([target["scores"] for target in targets], batch_first=True)
    return F.pad(scores, (0, int(scores.shape[1] == 0))).gather(1, index)


class GFL(RetinaNet):  # type: ignore[misc]  # torchvision is untyped
    """GFL with one square anchor on each cell; forward pass and detections are RetinaNet's.

    Args:
        backbone: Backbone with a pyramid.
        num_classes: Number of classes, without the background.
        head: The head; its box coder becomes the model's.
        anchor_generator: Generator of one anchor per cell, twice as large on each next level.
        options: Options of torchvision's `RetinaNet`.

    Source: GFL (arXiv 2006.04388, implus/GFocal and MMDetection's ``GFLHead``). Differs from the official code in
    choosing the 1000 candidates of a level for suppression as torchvision does, by the score of a box and a class
    instead of a box's highest score; and in counting positives over the batch of one process.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        head: GFLHead,
        anchor_generator: AnchorGenerator,
        **options: object,
    ) -> None:
        options = {"nms_thresh": NMS_THRESHOLD, **options}
        super().__init__(backbone, num_classes, head=head, anchor_generator=anchor_generator, **options)
        self.box_coder = head.box_coder

    def match(self, targets: Targets, anchors: list[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Return the index of each anchor's object in each image, or -1.

        Args:
            targets: ``boxes`` and ``labels`` of each image.
            anchors: Anchors of each image, ``A x 4``; all the same.
            counts: Number of anchors on each level.
        """
        return list(self._assign(targets, anchors, counts)[1].matched)

    def match_and_near(
        self, targets: Targets, anchors: list[Tensor], counts: Sequence[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the result of `match`, and the overlap of nearly matching anchors, see `valuable_region`."""
        boxes, assignment = self._assign(targets, anchors, counts)
        return list(assignment.matched), valuable_region(anchors[0], boxes, assignment.threshold)

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Match, and compute the head's losses."""
        sides = anchors[0][:, 2] - anchors[0][:, 0]  # they differ between levels
        counts: list[int] = torch.unique_consecutive(sides, return_counts=True)[1].tolist()
        matched = self.match(targets, anchors, counts)
        losses: dict[str, Tensor] = self.head.compute_loss(targets, head_outputs, anchors, matched)
        return losses

    @staticmethod
    @torch.no_grad()
    def _assign(targets: Targets, anchors: list[Tensor], counts: Sequence[int]) -> tuple[Tensor, Assignment]:
        boxes, _ = pad_objects([t["boxes"] for t in targets], [t["labels"] for t in targets])
        return boxes, assign(anchors[0], counts, boxes)
