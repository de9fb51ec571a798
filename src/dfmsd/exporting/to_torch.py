"""PyTorch's own format, `torch.export`."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import DetectionGraph, trace


def write(graph: DetectionGraph, file: Path) -> None:
    """Write a file for `torch.export.load`; torchvision must be imported first, for its suppression operator."""
    content = io.BytesIO()  # a full disk would end the process while PyTorch writes to it
    torch.export.save(trace(graph, graph.side, dynamic=graph.batches), content)
    file.write_bytes(content.getbuffer())


def read(file: Path, _graph: DetectionGraph | None = None) -> Run:
    """Load a file."""
    module = torch.export.load(file).module()

    def run(images: Tensor) -> RawDetections:
        with torch.no_grad():
            detections: RawDetections = module(images)
        return detections

    return run


TORCH = Format(".pt2", (), "", write, read)
