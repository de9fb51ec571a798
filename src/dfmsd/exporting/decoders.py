"""Detectors up to non-maximum suppression, as graphs with fixed output shapes.

The detectors' own decoding processes image by image and filters boxes on the way, which exporters do not support. These
decoders do the same arithmetic for batches of any size and images of one size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS

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
        """Decode box deltas ``N x K x E`` relative to anchors ``N x K x 4``; boxes are clipped to the input."""
        coder = self.model.box_coder
        if isinstance(self.model, FCOS):
            return coder.decode(box_deltas, anchors).clamp(0, self.side)  # type: ignore[no-any-return]
        boxes: Tensor = coder.decode_single(box_deltas.flatten(0, 1), anchors.flatten(0, 1))
        return boxes.view_as(anchors).clamp(0, self.side)


class OneStageDecoder(TorchvisionDecoder):
    """FCOS, RetinaNet and GFL: the best anchor-class pairs of each level."""

    anchors: Tensor

    def __init__(self, detector: OneStageDetector, side: int) -> None:
        super().__init__(detector, side)
        self.counts = self.store_anchors(self.model.anchor_generator)
        self.store_thresholds(self.model)

    def forward(self, images: Tensor) -> RawDetections:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        outputs = self.model.head(list(self.maps(images).values()))
        scores = outputs["cls_logits"].sigmoid()
        if isinstance(self.model, FCOS):
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        levels = (torch.split(values, self.counts, dim=1) for values in (scores, outputs["bbox_regression"]))
        decoded = [self._level(*level) for level in zip(*levels, torch.split(self.anchors, self.counts), strict=True)]
        boxes, best, labels = (torch.cat(parts, dim=1) for parts in zip(*decoded, strict=True))
        return boxes, above(best, self.score_threshold), labels

    def _level(self, scores: Tensor, box_deltas: Tensor, anchors: Tensor) -> RawDetections:
        best, index, labels = best_pairs(scores, self.model.topk_candidates)
        return self.decode(gather_rows(box_deltas, index), anchors[index]), best, labels


class SSDDecoder(TorchvisionDecoder):
    """SSD and SSDLite: the best boxes of each class."""

    anchors: Tensor

    def __init__(self, detector: SSDDetector, side: int) -> None:
        super().__init__(detector, side)
        self.store_anchors(detector.spread_boxes)  # SSD300's own anchors are for 300 pixels
        self.store_thresholds(self.model)

    def forward(self, images: Tensor) -> RawDetections:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        outputs = self.model.head(list(self.maps(images).values()))
        scores = outputs["cls_logits"].softmax(dim=2)[:, :, 1:].transpose(1, 2)
        best, index = scores.topk(min(self.model.topk_candidates, scores.shape[2]), dim=2)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device).unsqueeze(1).expand_as(index)
        flat = index.flatten(1)
        boxes = self.decode(gather_rows(outputs["bbox_regression"], flat), self.anchors[flat])
        return boxes, above(best.flatten(1), self.score_threshold), labels.flatten(1)


class QueryDecoder(Decoder):
    """RT-DETR and similar models: the best query-class pairs, without suppression."""

    batches = False  # transformers calls ``len`` on the batch, which tracing turns into a constant

    def __init__(self, detector: TransformersDetector, side: int) -> None:
        super().__init__(detector, side)
        self.score_threshold, self.nms_threshold, self.per_image = SCORE_THRESHOLD, math.inf, DETECTIONS_PER_IMAGE
        limit = signature(detector.processor.post_process_object_detection).parameters.get("top_k")
        self.pairs = limit.default if limit else None  # None: as many as queries

    def forward(self, images: Tensor) -> RawDetections:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        output = self.detector.model(pixel_values=(images - self.detector.mean) / self.detector.std)
        best, index, labels = best_pairs(output.logits.sigmoid(), self.pairs or output.logits.shape[1])
        center, size = gather_rows(output.pred_boxes, index).chunk(2, dim=2)
        boxes = torch.cat([center - size / 2, center + size / 2], dim=2) * self.side
        return boxes.clamp(0, self.side), above(best, self.score_threshold), labels


def best_pairs(scores: Tensor, count: int) -> RawDetections:
    """Return scores, row indices and classes of the ``count`` highest scores, each ``N x K``.

    Args:
        scores: ``N x A x C``.
        count: upper limit of ``K``.
    """
    best, pair = scores.flatten(1).topk(min(count, scores.shape[1] * scores.shape[2]), dim=1)
    return best, pair // scores.shape[2], pair % scores.shape[2]


def above(scores: Tensor, threshold: float) -> Tensor:
    """Set scores that do not exceed the threshold to 0."""
    return torch.where(scores > threshold, scores, 0.0)
