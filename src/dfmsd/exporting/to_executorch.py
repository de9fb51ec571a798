"""ExecuTorch with XNNPACK, for mobile and embedded devices; suppression is left to the caller."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import DetectionGraph, trace
from dfmsd.exporting.two_stage import TwoStageDecoder
from dfmsd.utils.console import quiet


def write(graph: DetectionGraph, file: Path) -> None:
    """Write a file that accepts one image and returns the output of a `Decoder`.

    Raises:
        DfmsdError: the detector has two stages, with suppression between them.
    """
    if isinstance(graph.decoder, TwoStageDecoder):
        raise DfmsdError(
            "export: ExecuTorch has no non-maximum suppression, which Faster R-CNN needs between its stages; use"
            " `format` onnx, openvino or torch, or a one-stage student"
        )
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = trace(graph.decoder, graph.side, dynamic=False)
    with quiet():
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)


def read(file: Path, graph: DetectionGraph) -> Run:
    """Load a file; its output goes through the graph's `PostProcessor`."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")

    def run(images: Tensor) -> RawDetections:
        boxes, scores, labels = (part.clone() for part in method.execute([images.contiguous()]))
        with torch.no_grad():
            selected: RawDetections = graph.post_processor(boxes, scores, labels)
        return selected

    return run


EXECUTORCH = Format(".pte", ("executorch",), "executorch", write, read, dynamic=False, whole=False)
