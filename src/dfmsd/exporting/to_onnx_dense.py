"""ONNX without suppression, for compilers of devices: one image, fixed shapes, the oldest opset."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfmsd.exporting import to_onnx
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.dense import DENSE_OUTPUTS, DenseGraph, finish
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import INPUT, DetectionGraph, trace

OPSET = 18
"""The oldest one that PyTorch writes; compilers of devices lag behind."""


def write(graph: DetectionGraph, file: Path) -> None:
    """Write one file that includes the weights and returns all boxes and scores."""
    to_onnx.save(trace(DenseGraph(graph), graph.side, dynamic=False), file, DENSE_OUTPUTS, OPSET)


def read(file: Path, graph: DetectionGraph) -> Run:
    """Load a file on the CPU; its output goes through the graph's selection and suppression."""
    session = to_onnx.open_session(file)

    def run(images: Tensor) -> RawDetections:
        boxes, scores = session.run(list(DENSE_OUTPUTS), {INPUT: images.contiguous().numpy()})
        return finish(graph, torch.from_numpy(boxes), torch.from_numpy(scores))

    return run


ONNX_DENSE = Format(
    ".onnx",
    to_onnx.ONNX.packages,
    "onnx",
    write,
    read,
    dynamic=False,
    whole=False,
    outputs=DENSE_OUTPUTS,
    infix=".dense",
)
