"""LiteRT, formerly TensorFlow Lite, for phones and boards; suppression is left to the caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.dense import DENSE_OUTPUTS, DenseGraph, finish, refuse_queries
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import INPUT, DetectionGraph
from dfmsd.utils.console import quiet


class _Named(nn.Module):
    """A dense graph with named outputs, which become those of the file."""

    def __init__(self, graph: DetectionGraph) -> None:
        super().__init__()
        self.dense = DenseGraph(graph)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(DENSE_OUTPUTS, self.dense(images), strict=True))


def write(graph: DetectionGraph, file: Path) -> None:
    """Write a float32 file for one image that returns all boxes and scores.

    Raises:
        DfmsdError: the detector has two stages or queries, or LiteRT lacks operations of it.
    """
    refuse_queries(graph, "LiteRT lacks operations that RT-DETR and similar models need")
    module = _Named(graph).eval()
    with quiet():
        import litert_torch

        litert_torch.config.show_progress = False  # on standard output
        example = torch.zeros(1, 3, graph.side, graph.side)
        try:
            litert_torch.convert(module, sample_kwargs={INPUT: example}).export(str(file))
        except Exception as error:  # its passes raise anything
            raise DfmsdError(
                f"export: litert-torch cannot convert this model ({foreign_message(error)}); use `format` onnx,"
                " openvino or torch, or another model"
            ) from error


def read(file: Path, graph: DetectionGraph) -> Run:
    """Load a file on the CPU, with as many threads as PyTorch uses."""
    from ai_edge_litert.interpreter import Interpreter

    runner: Any = Interpreter(str(file), num_threads=torch.get_num_threads()).get_signature_runner()

    def run(images: Tensor) -> RawDetections:
        found = runner(**{INPUT: images.contiguous().numpy()})
        boxes, scores = (torch.from_numpy(found[name]) for name in DENSE_OUTPUTS)
        return finish(graph, boxes, scores)

    return run


LITERT = Format(
    ".tflite",
    ("ai_edge_litert", "litert_torch"),
    "litert",
    write,
    read,
    dynamic=False,
    whole=False,
    outputs=DENSE_OUTPUTS,
)
