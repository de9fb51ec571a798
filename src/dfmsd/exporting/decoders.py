"""Detectors up to non-maximum suppression, as graphs with fixed output shapes.

The detectors' own decoding processes image by image and filters boxes on the way, which exporters do not support. These
decoders do the same arithmetic for batches of any size and images of one size. Those of detectors with one stage have
two parts: `dense`, all boxes and scores, which every runtime can compute, and `select`, the best of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import BoxCoder

from dfmsd.detectors.base import DETECTIONS_PER_IMAGE, SCORE_THRESHOLD
from dfmsd.detectors.huggingface.detector import TransformersDetector
from dfmsd.detectors.torchvision.base import TorchvisionDetector, whole
from dfmsd.detectors.torchvision.one_stage import OneStageDetector
from dfmsd.detectors.torchvision.ssd import SSDDetector
from dfmsd.exporting.nms import gather_rows

RawDetections = tuple[Tensor, Tensor, Tensor]
"""Boxes ``N x M x 4``, xyxy in input pixels; scores ``N x M``, 0 for missing boxes; the model's own labels."""


class Decoder(nn.Module, ABC):
    """A detector up to its suppression.

    Args:
        detector: in eval mode.
        side: of the square input, in pixels.

    Attributes:
        score_threshold: scores must be above it.
        nms_threshold: IoU threshold of the suppression within a label; infinite without suppression.
        per_image: maximum number of detections per image.
    """

    batches = True
    """Whether the model can be traced for batches of any size; otherwise for one image."""
    score_threshold: float
    nms_threshold: float
    per_image: int

    def __init__(self, detector: Any, side: int) -> None:
        super().__init__()
        self.detector = detector
        self.side = side

    @abstractmethod
    def forward(self, images: Tensor) -> RawDetections:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""


class DenseDecoder(Decoder):
    """A detector with one stage: a fixed number of boxes, each with a score for every class.

    Attributes:
        groups: numbers of boxes that follow each other and compete for a place among the candidates.
        candidates: the maximum number of box-class pairs that a group keeps.
        by_class: whether each class of a group keeps as many.
        first_label: the model's own label of the first score.
    """

    groups: list[int]
    candidates: int
    by_class = False
    first_label = 0

    @abstractmethod
    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return all boxes, ``N x A x 4``, xyxy in input pixels, and scores, ``N x A x C``, in 0..1.

        Args:
            images: ``N x 3 x side x side``, RGB in [0, 1].
        """

    def select(self, boxes: Tensor, scores: Tensor) -> RawDetections:
        """Select the best pairs of the output of `dense`."""
        levels = zip(torch.split(boxes, self.groups, dim=1), torch.split(scores, self.groups, dim=1), strict=True)
        pick = best_of_classes if self.by_class else best_pairs
        parts = []
        for level, values in levels:
            best, index, labels = pick(values, self.candidates)
            parts.append((gather_rows(level, index), best, labels + self.first_label))
        found, best, labels = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return found, above(best, self.score_threshold), labels

    def forward(self, images: Tensor) -> RawDetections:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        return self.select(*self.dense(images))


class TorchvisionDecoder(Decoder):
    """Base of the decoders for torchvision models."""

    def __init__(self, detector: TorchvisionDetector, side: int) -> None:
        super().__init__(detector, side)
        self.model = detector.model

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the feature pyramid, with torchvision's level names."""
        maps: dict[str, Tensor] = self.model.backbone((images - self.detector.mean) / self.detector.std)
        return maps

    def store_anchors(self, generator: Any) -> list[int]:
        """Store the anchors for this input size, ``A x 4``, and return their number on each level."""
        images = self.detector.mean.new_zeros(1, 3, self.side, self.side)
        with torch.no_grad():
            levels = list(self.maps(images).values())
            self.register_buffer("anchors", generator(whole(images), levels)[0], persistent=False)
        per_cell = generator.num_anchors_per_location()
        return [level.shape[2] * level.shape[3] * cell for level, cell in zip(levels, per_cell, strict=True)]

    def store_thresholds(self, head: Any) -> None:
        """Store the thresholds of the model, or of its box head."""
        self.score_threshold, self.nms_threshold = head.score_thresh, head.nms_thresh
        self.per_image = head.detections_per_img

    def decode(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """Decode box deltas ``N x A x E`` relative to anchors ``A x 4``; boxes are clipped to the input."""
        coder = self.model.box_coder
        anchors = anchors.expand(box_deltas.shape[0], -1, -1)
        if isinstance(coder, BoxCoder):
            boxes = decode_offsets(coder, box_deltas, anchors)
        else:
            boxes = (
                coder.decode(box_deltas, anchors)
                if isinstance(self.model, FCOS)
                else coder.decode_single(box_deltas, anchors)
            )
        return boxes.clamp(0, self.side)


class OneStageDecoder(TorchvisionDecoder, DenseDecoder):
    """FCOS, RetinaNet and GFL: the best anchor-class pairs of each level."""

    anchors: Tensor

    def __init__(self, detector: OneStageDetector, side: int) -> None:
        super().__init__(detector, side)
        self.groups, self.candidates = self.store_anchors(self.model.anchor_generator), self.model.topk_candidates
        self.store_thresholds(self.model)

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        outputs = self.model.head(list(self.maps(images).values()))
        scores = outputs["cls_logits"].sigmoid()
        if isinstance(self.model, FCOS):
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        return self.decode(outputs["bbox_regression"], self.anchors), scores


class SSDDecoder(TorchvisionDecoder, DenseDecoder):
    """SSD and SSDLite: the best boxes of each class."""

    anchors: Tensor
    by_class = True
    first_label = 1  # after the background

    def __init__(self, detector: SSDDetector, side: int) -> None:
        super().__init__(detector, side)
        # SSD300's own anchors are for 300 pixels
        self.groups, self.candidates = [sum(self.store_anchors(detector.spread_boxes))], self.model.topk_candidates
        self.store_thresholds(self.model)

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        outputs = self.model.head(list(self.maps(images).values()))
        return self.decode(outputs["bbox_regression"], self.anchors), outputs["cls_logits"].softmax(dim=2)[:, :, 1:]


class QueryDecoder(DenseDecoder):
    """RT-DETR and similar models: the best query-class pairs, without suppression."""

    batches = False  # transformers calls ``len`` on the batch, which tracing turns into a constant

    def __init__(self, detector: TransformersDetector, side: int) -> None:
        super().__init__(detector, side)
        self.score_threshold, self.nms_threshold, self.per_image = SCORE_THRESHOLD, math.inf, DETECTIONS_PER_IMAGE
        limit = signature(detector.processor.post_process_object_detection).parameters.get("top_k")
        self.groups = [detector.model.config.num_queries]
        self.candidates = limit.default if limit and limit.default else self.groups[0]

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        output = self.detector.model(pixel_values=(images - self.detector.mean) / self.detector.std)
        center, size = output.pred_boxes.chunk(2, dim=2)
        boxes = torch.cat([center - size / 2, center + size / 2], dim=2) * self.side
        return boxes.clamp(0, self.side), output.logits.sigmoid()


def decode_offsets(coder: BoxCoder, box_deltas: Tensor, anchors: Tensor) -> Tensor:
    """Decode boxes as the coder does, ``... x 4``, without its slices of every fourth column, which ncnn lacks."""
    size = anchors[..., 2:] - anchors[..., :2]
    shift, scale = (box_deltas / box_deltas.new_tensor(coder.weights)).chunk(2, dim=-1)
    center = shift * size + anchors[..., :2] + 0.5 * size
    half = 0.5 * scale.clamp(max=coder.bbox_xform_clip).exp() * size
    return torch.cat([center - half, center + half], dim=-1)


def best_pairs(scores: Tensor, count: int) -> RawDetections:
    """Return scores, row indices and classes of the ``count`` highest scores, each ``N x K``.

    Args:
        scores: ``N x A x C``.
        count: upper limit of ``K``.
    """
    best, pair = scores.flatten(1).topk(min(count, scores.shape[1] * scores.shape[2]), dim=1)
    return best, pair // scores.shape[2], pair % scores.shape[2]


def best_of_classes(scores: Tensor, count: int) -> RawDetections:
    """Return scores, row indices and classes of the ``count`` highest scores of each class, each ``N x K``.

    Args:
        scores: ``N x A x C``.
        count: upper limit of ``K / C``.
    """
    best, index = scores.transpose(1, 2).topk(min(count, scores.shape[1]), dim=2)
    labels = torch.arange(scores.shape[2], device=scores.device).unsqueeze(1).expand_as(index)
    return best.flatten(1), index.flatten(1), labels.flatten(1)


def above(scores: Tensor, threshold: float) -> Tensor:
    """Set scores that do not exceed the threshold to 0."""
    return torch.where(scores > threshold, scores, 0.0)
