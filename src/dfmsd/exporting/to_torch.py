"""torch's own format."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import DetectionGraph, trace


def write(graph: DetectionGraph, file: Path) -> None:
    """Write a file for `torch.export.load`, which wants torchvision imported, whose suppression is inside."""
    torch.export.save(trace(graph, graph.side, dynamic=graph.batches), file)


def read(file: Path, _graph: DetectionGraph | None = None) -> Run:
    """Load a file."""
    module = torch.export.load(file).module()

    def run(images: Tensor) -> RawDetections:
        with torch.no_grad():
            found: RawDetections = module(images)
        return found

    return run


TORCH = Format(".pt2", (), "", write, read)
