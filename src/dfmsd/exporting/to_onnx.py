"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import INPUT, OUTPUTS, DetectionGraph, trace
from dfmsd.utils.console import quiet


def write(graph: DetectionGraph, file: Path) -> None:
    """Write one file that includes the weights."""
    save(trace(graph, graph.side, dynamic=graph.batches), file, OUTPUTS)


def save(program: ExportedProgram, file: Path, outputs: Sequence[str], opset: int | None = None) -> None:
    """Write a traced graph as one file.

    Args:
        program: accepts images.
        file: to write.
        outputs: names of the graph's outputs.
        opset: of the file; None for PyTorch's default.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with quiet():
        exported = torch.onnx.export(
            _without_checks(program),
            input_names=[INPUT],
            output_names=list(outputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert exported is not None
        ClearMetadataAndDocStringPass()(exported.model)  # stack traces, with paths of this machine
        exported.save(file, external_data=False)


def _without_checks(program: ExportedProgram) -> ExportedProgram:
    """Remove the assertions in the model's code, which ONNX cannot express."""
    for node in reversed(program.graph.nodes):
        if "_assert" in str(node.target):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def read(file: Path, _graph: DetectionGraph | None = None) -> Run:
    """Load a file on the CPU, with as many threads as PyTorch uses."""
    session = open_session(file)

    def run(images: Tensor) -> RawDetections:
        boxes, scores, labels = session.run(list(OUTPUTS), {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)

    return run


def open_session(file: Path) -> Any:
    """Open a file on the CPU, with as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


ONNX = Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnx", write, read)
