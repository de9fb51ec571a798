"""A detector as one graph, from pixels to detections."""

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
    """Suppression, selection of the best detections per image, and mapping to the detector's labels.

    Args:
        decoder: provides the thresholds.
    """

    class_of: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.score_threshold = decoder.score_threshold
        self.nms_threshold = decoder.nms_threshold
        self.per_image = decoder.per_image
        self.side = decoder.side
        self.register_buffer("class_of", decoder.detector.class_of, persistent=False)

    @property
    def has_nms(self) -> bool:
        """Whether boxes of one label suppress each other."""
        return math.isfinite(self.nms_threshold)

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> RawDetections:
        """Return boxes ``N x K x 4``, scores and labels ``N x K``, best first, padded with score 0 and label -1.

        Args:
            boxes: ``N x M x 4``, xyxy in pixels.
            scores: ``N x M``, 0 for missing boxes.
            labels: ``N x M``, the model's own.
        """
        if self.has_nms:
            scores = nms_scores(boxes, scores, labels, self.nms_threshold, self.class_of.shape[0], float(self.side))
        scores, index = scores.topk(min(self.per_image, scores.shape[1]), dim=1)
        labels = torch.where(scores > 0, self.class_of[labels.gather(1, index)], -1)
        scores = torch.where(labels >= 0, scores, 0.0)  # labels without a class
        return gather_rows(boxes, index) * (scores > 0).unsqueeze(2), scores, labels


class DetectionGraph(nn.Module):
    """``detector.detect`` for images that fill a square input, in batches of any size.

    Args:
        detector: in eval mode.
        side: of the input, in pixels.

    Raises:
        DfmsdError: the detector cannot be exported, or does not accept this side.
    """

    def __init__(self, detector: Detector, side: int) -> None:
        super().__init__()
        kind = DECODERS.get(type(detector))
        if kind is None or (isinstance(detector, TransformersDetector) and not detector.family.trainable):
            raise DfmsdError(
                f"export: this {type(detector).__name__} cannot be exported; supported are FCOS, RetinaNet, GFL, SSD,"
                " SSDLite, Faster R-CNN, RT-DETR, RT-DETRv2, D-FINE, DEIMv2, LW-DETR, RF-DETR and"
                " Deformable DETR"
            )
        check_image_size(side, "`image_size`")
        self.decoder = kind(detector, side)
        self.post_processor = PostProcessor(self.decoder)

    @property
    def side(self) -> int:
        """Side of the input, in pixels."""
        return self.decoder.side

    @property
    def batches(self) -> bool:
        """Whether it can be traced for batches of any size."""
        return self.decoder.batches

    def forward(self, images: Tensor) -> RawDetections:
        """Detect objects in ``N x 3 x side x side``, RGB in [0, 1]; returns the output of `PostProcessor`."""
        detections: RawDetections = self.post_processor(*self.decoder(images))
        return detections


def trace(graph: nn.Module, side: int, *, dynamic: bool) -> ExportedProgram:
    """Trace a module with `torch.export`.

    Args:
        graph: accepts images.
        side: of the input, in pixels.
        dynamic: accept batches of any size; otherwise one image.

    Raises:
        DfmsdError: the model cannot be traced.
    """
    example = torch.zeros(2 if dynamic else 1, 3, side, side)
    shapes: Any = ({0: Dim.DYNAMIC},) if dynamic else None
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # model code can make the tracer raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DfmsdError(f"export: torch.export cannot trace this model ({reason}); choose another model") from error
