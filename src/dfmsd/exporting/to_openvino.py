"""OpenVINO IR, converted from ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfmsd.exporting import to_onnx
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import DetectionGraph


def write(graph: DetectionGraph, file: Path) -> None:
    """Write ``<name>.xml`` and, next to it, the float32 weights ``<name>.bin``."""
    import openvino

    onnx = file.with_suffix(".onnx")
    to_onnx.write(graph, onnx)
    openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)
    onnx.unlink()


def read(file: Path, _graph: DetectionGraph | None = None) -> Run:
    """Load a file on the CPU, in float32 and with as many threads as PyTorch uses."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(file, "CPU", options)

    def run(images: Tensor) -> RawDetections:
        outputs = compiled(images.contiguous().numpy())
        # copy: the next call reuses the memory
        boxes, scores, labels = (torch.from_numpy(outputs[index].copy()) for index in range(3))
        return boxes, scores, labels

    return run


OPENVINO = Format(".xml", ("onnx", "onnxscript", "openvino"), "openvino", write, read)
