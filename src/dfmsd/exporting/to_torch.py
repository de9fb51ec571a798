"""PyTorch's own format, `torch.export`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import DetectionGraph, trace


def write(graph: DetectionGraph, file: Path) -> None:
    """Write a file for `torch.export.load`; torchvision must be imported first, for its suppression operator."""
    torch.export.save(trace(graph, graph.side, dynamic=graph.batches), file)


def read(file: Path, _graph: DetectionGraph | None = None) -> Run:
    """Load a file."""
    module = torch.export.load(file).module()

    def run(images: Tensor) -> RawDetections:
        with torch.no_grad():
            detections: RawDetections = module(images)
        return detections

    return run


TORCH = Format(".pt2", (), "", write, read)
