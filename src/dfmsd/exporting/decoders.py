"""What a detector's suppression chooses from, as one graph, at shapes that depend on no result.

The detectors' own decoding goes image by image and drops boxes as it goes, which no exporter takes. Here it is of the
same arithmetic, for a batch of any size and images of one size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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
"""Boxes ``N x M x 4``, xyxy in pixels of the input; scores ``N x M``, 0 where there is none; the model's own labels."""


class Decoder(nn.Module, ABC):
    """A detector up to its suppression.

    Args:
        detector: in eval mode.
        side: of the square input, in pixels.

    Attributes:
        score_threshold: candidates have to be above.
        nms_threshold: IoU above which the worse of two boxes of one label goes; infinite where none goes.
        per_image: detections that are kept.
    """

    batches = True
    """Whether the model can be traced for batches of any size, otherwise for one image."""
    score_threshold: float
    nms_threshold: float
    per_image: int

    def __init__(self, detector: Any, side: int) -> None:
        super().__init__()
        self.detector = detector
        self.side = side

    @abstractmethod
    def forward(self, images: Tensor) -> RawDetections:
        """Take ``N x 3 x side x side``, RGB in [0, 1]."""


class TorchvisionDecoder(Decoder):
    """What the models of torchvision have in common."""

    def __init__(self, detector: TorchvisionDetector, side: int) -> None:
        super().__init__(detector, side)
        self.model = detector.model

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Give the pyramid by torchvision's names."""
        maps: dict[str, Tensor] = self.model.backbone((images - self.detector.mean) / self.detector.std)
        return maps

    def keep_anchors(self, generator: Any) -> list[int]:
        """Keep the anchors of the input's size, ``A x 4``; gives their number on each level."""
        images = self.detector.mean.new_zeros(1, 3, self.side, self.side)
        with torch.no_grad():
            levels = list(self.maps(images).values())
            self.register_buffer("anchors", generator(whole(images), levels)[0], persistent=False)
        per_cell = generator.num_anchors_per_location()
        return [level.shape[2] * level.shape[3] * cell for level, cell in zip(levels, per_cell, strict=True)]

    def keep_thresholds(self, part: Any) -> None:
        """Keep those of the model, or of the part of it that decides."""
        self.score_threshold, self.nms_threshold = part.score_thresh, part.nms_thresh
        self.per_image = part.detections_per_img

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Give boxes within the input, ``N x K x 4``, of codes ``N x K x E`` and anchors ``N x K x 4``."""
        coder = self.model.box_coder
        if isinstance(self.model, FCOS):
            return coder.decode(codes, anchors).clamp(0, self.side)  # type: ignore[no-any-return]
        boxes: Tensor = coder.decode_single(codes.flatten(0, 1), anchors.flatten(0, 1))
        return boxes.view_as(anchors).clamp(0, self.side)


class OneStageDecoder(TorchvisionDecoder):
    """FCOS, RetinaNet and GFL: on each level the best pairs of an anchor and a class."""

    anchors: Tensor

    def __init__(self, detector: OneStageDetector, side: int) -> None:
        super().__init__(detector, side)
        self.counts = self.keep_anchors(self.model.anchor_generator)
        self.keep_thresholds(self.model)

    def forward(self, images: Tensor) -> RawDetections:
        """Take ``N x 3 x side x side``, RGB in [0, 1]."""
        outputs = self.model.head(list(self.maps(images).values()))
        scores = outputs["cls_logits"].sigmoid()
        if isinstance(self.model, FCOS):
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        levels = (torch.split(values, self.counts, dim=1) for values in (scores, outputs["bbox_regression"]))
        found = [self._level(*level) for level in zip(*levels, torch.split(self.anchors, self.counts), strict=True)]
        boxes, best, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return boxes, above(best, self.score_threshold), labels

    def _level(self, scores: Tensor, codes: Tensor, anchors: Tensor) -> RawDetections:
        best, index, labels = best_pairs(scores, self.model.topk_candidates)
        return self.decode(gather_rows(codes, index), anchors[index]), best, labels


class SSDDecoder(TorchvisionDecoder):
    """SSD and SSDLite: of each class the best boxes."""

    anchors: Tensor

    def __init__(self, detector: SSDDetector, side: int) -> None:
        super().__init__(detector, side)
        self.keep_anchors(detector.spread_boxes)  # SSD300's own are for 300 pixels, which no frame here has
        self.keep_thresholds(self.model)

    def forward(self, images: Tensor) -> RawDetections:
        """Take ``N x 3 x side x side``, RGB in [0, 1]."""
        outputs = self.model.head(list(self.maps(images).values()))
        scores = outputs["cls_logits"].softmax(dim=2)[:, :, 1:].transpose(1, 2)
        best, index = scores.topk(min(self.model.topk_candidates, scores.shape[2]), dim=2)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device).unsqueeze(1).expand_as(index)
        place = index.flatten(1)
        boxes = self.decode(gather_rows(outputs["bbox_regression"], place), self.anchors[place])
        return boxes, above(best.flatten(1), self.score_threshold), labels.flatten(1)


class QueryDecoder(Decoder):
    """RT-DETR and its like: the best pairs of a query and a class, which nothing suppresses."""

    batches = False  # transformers takes the ``len`` of a batch, which a trace takes for a constant

    def __init__(self, detector: TransformersDetector, side: int) -> None:
        super().__init__(detector, side)
        self.score_threshold, self.nms_threshold, self.per_image = SCORE_THRESHOLD, math.inf, DETECTIONS_PER_IMAGE

    def forward(self, images: Tensor) -> RawDetections:
        """Take ``N x 3 x side x side``, RGB in [0, 1]."""
        output = self.detector.model(pixel_values=(images - self.detector.mean) / self.detector.std)
        best, index, labels = best_pairs(output.logits.sigmoid(), output.logits.shape[1])
        centre, size = gather_rows(output.pred_boxes, index).chunk(2, dim=2)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=2) * self.side
        return boxes.clamp(0, self.side), above(best, self.score_threshold), labels


def best_pairs(scores: Tensor, count: int) -> RawDetections:
    """Give the ``count`` best pairs: their scores ``N x K``, the index of the first ones, and the class of each.

    Args:
        scores: ``N x A x C``.
        count: fewer are given where there are not so many.
    """
    best, pair = scores.flatten(1).topk(min(count, scores.shape[1] * scores.shape[2]), dim=1)
    return best, pair // scores.shape[2], pair % scores.shape[2]


def above(scores: Tensor, threshold: float) -> Tensor:
    """Give the scores, with 0 in place of those that do not pass the threshold."""
    return torch.where(scores > threshold, scores, 0.0)
