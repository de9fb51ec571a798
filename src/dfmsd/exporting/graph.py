"""A detector as one graph from pixels to detections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dfmsd.data.config import check_image_size
from dfmsd.detectors.base import Detector
from dfmsd.detectors.huggingface.detector import TransformersDetector
from dfmsd.detectors.torchvision.one_stage import OneStageDetector
from dfmsd.detectors.torchvision.ssd import SSDDetector
from dfmsd.detectors.torchvision.two_stage import TwoStageDetector
from dfmsd.errors import DfmsdError
from dfmsd.exporting.decoders import Decoder, OneStageDecoder, QueryDecoder, RawDetections, SSDDecoder
from dfmsd.exporting.nms import gather_rows, nms_scores
from dfmsd.exporting.two_stage import TwoStageDecoder
from dfmsd.utils.console import quiet

INPUT = "images"
OUTPUTS = ("boxes", "scores", "labels")
DECODERS: dict[type[Detector], type[Decoder]] = {
    OneStageDetector: OneStageDecoder,
    SSDDetector: SSDDecoder,
    TwoStageDetector: TwoStageDecoder,
    TransformersDetector: QueryDecoder,
}


class PostProcessor(nn.Module):
    """From candidates to detections: suppression, the best of each image, and the detector's labels.

    Args:
        candidates: tell the thresholds.
    """

    class_of: Tensor

    def __init__(self, candidates: Decoder) -> None:
        super().__init__()
        self.score_threshold = candidates.score_threshold
        self.nms_threshold = candidates.nms_threshold
        self.per_image = candidates.per_image
        self.side = candidates.side
        self.register_buffer("class_of", candidates.detector.class_of, persistent=False)

    @property
    def suppresses(self) -> bool:
        """Whether boxes of one label suppress each other."""
        return math.isfinite(self.nms_threshold)

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> RawDetections:
        """Give ``N x K x 4``, ``N x K`` and ``N x K``, best first; where there are fewer, score 0 and label -1.

        Args:
            boxes: ``N x M x 4``, xyxy in pixels.
            scores: ``N x M``, 0 where there is no box.
            labels: ``N x M``, the model's own.
        """
        if self.suppresses:
            scores = nms_scores(boxes, scores, labels, self.nms_threshold, self.class_of.shape[0], float(self.side))
        scores, index = scores.topk(min(self.per_image, scores.shape[1]), dim=1)
        labels = torch.where(scores > 0, self.class_of[labels.gather(1, index)], -1)
        scores = torch.where(labels >= 0, scores, 0.0)  # of labels that no object has
        return gather_rows(boxes, index) * (scores > 0).unsqueeze(2), scores, labels


class DetectionGraph(nn.Module):
    """``detector.detect`` of images that fill a square input, for a batch of any size.

    Args:
        detector: in eval mode.
        side: of the input, in pixels.

    Raises:
        DfmsdError: a detector that has no graph, or a side that it does not take.
    """

    def __init__(self, detector: Detector, side: int) -> None:
        super().__init__()
        kind = DECODERS.get(type(detector))
        if kind is None or (isinstance(detector, TransformersDetector) and not detector.family.trainable):
            raise DfmsdError(
                f"export: {type(detector).__name__} of this kind cannot be exported; what can are FCOS, RetinaNet, GFL,"
                " SSD, SSDLite, Faster R-CNN, RT-DETR, RT-DETRv2 and D-FINE"
            )
        check_image_size(side, "--image-size")
        self.candidates = kind(detector, side)
        self.selection = PostProcessor(self.candidates)

    @property
    def side(self) -> int:
        """Of the input, in pixels."""
        return self.candidates.side

    @property
    def batches(self) -> bool:
        """Whether it can be traced for batches of any size."""
        return self.candidates.batches

    def forward(self, images: Tensor) -> RawDetections:
        """Take ``N x 3 x side x side``, RGB in [0, 1]; give boxes ``N x K x 4``, scores and labels ``N x K``."""
        found: RawDetections = self.selection(*self.candidates(images))
        return found


def trace(graph: nn.Module, side: int, *, dynamic: bool) -> ExportedProgram:
    """Trace a graph with `torch.export`.

    Args:
        graph: takes images.
        side: of the input, in pixels.
        dynamic: take batches of any size; otherwise of one image.

    Raises:
        DfmsdError: the model does what cannot be traced.
    """
    example = torch.zeros(2 if dynamic else 1, 3, side, side)
    shapes: Any = ({0: Dim.DYNAMIC},) if dynamic else None
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # a model's own code breaks the tracer in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DfmsdError(f"export: torch.export cannot trace this model ({reason}); choose another one") from error
