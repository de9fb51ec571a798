"""Files without suppression: the graph ends at all boxes and scores, and the rest is done outside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.exporting.decoders import DenseDecoder, QueryDecoder, RawDetections
from dfmsd.exporting.graph import DetectionGraph

DENSE_OUTPUTS = ("boxes", "scores")


class DenseGraph(nn.Module):
    """A graph up to all its boxes and scores.

    Args:
        graph: of a detector with one stage.

    Raises:
        DfmsdError: the detector has two stages, with suppression between them.
    """

    def __init__(self, graph: DetectionGraph) -> None:
        super().__init__()
        self.decoder = dense_decoder(graph)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes ``N x A x 4`` and scores ``N x A x C`` of ``N x 3 x side x side``, RGB in [0, 1]."""
        return self.decoder.dense(images)


def dense_decoder(graph: DetectionGraph) -> DenseDecoder:
    """Return the graph's decoder.

    Raises:
        DfmsdError: the detector has two stages, with suppression between them.
    """
    if not isinstance(graph.decoder, DenseDecoder):
        raise DfmsdError(
            "export: Faster R-CNN needs non-maximum suppression between its stages, so a file without it is not"
            " possible; use `format` onnx, openvino or torch with `nms` inside, or a one-stage student"
        )
    return graph.decoder


def refuse_queries(graph: DetectionGraph, reason: str) -> None:
    """Refuse a detector with queries.

    Args:
        graph: of a detector.
        reason: why its format cannot have it.

    Raises:
        DfmsdError: the detector has queries.
    """
    if isinstance(graph.decoder, QueryDecoder):
        raise DfmsdError(
            f"export: {reason}; use `format` onnx, openvino or torch, or a student of FCOS, RetinaNet, GFL or SSDLite"
        )


def finish(graph: DetectionGraph, boxes: Tensor, scores: Tensor) -> RawDetections:
    """Turn the output of a `DenseGraph` into detections, as `DetectionGraph` returns them."""
    with torch.no_grad():
        detections: RawDetections = graph.post_processor(*dense_decoder(graph).select(boxes, scores))
    return detections
