"""ExecuTorch, for phones and boards, with XNNPACK; its runtime knows no suppression, which is left to the caller."""

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
    """Write a file that takes one image and gives candidates, see `Decoder`.

    Raises:
        DfmsdError: a two-stage detector, which suppresses in its middle.
    """
    if isinstance(graph.candidates, TwoStageDecoder):
        raise DfmsdError(
            "export: ExecuTorch has no non-maximum suppression, which Faster R-CNN needs in its middle; take --format"
            " onnx, openvino or torch, or a one-stage student"
        )
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = trace(graph.candidates, graph.side, dynamic=False)
    with quiet():
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)


def read(file: Path, graph: DetectionGraph) -> Run:
    """Load a file; what it gives goes through the graph's `PostProcessor`."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")

    def run(images: Tensor) -> RawDetections:
        boxes, scores, labels = (part.clone() for part in method.execute([images.contiguous()]))
        with torch.no_grad():
            selected: RawDetections = graph.selection(boxes, scores, labels)
        return selected

    return run


EXECUTORCH = Format(".pte", ("executorch",), "executorch", write, read, dynamic=False, whole=False)
