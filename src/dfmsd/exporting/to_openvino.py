"""OpenVINO's own format, made of the ONNX file by its converter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfmsd.exporting import to_onnx
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import DetectionGraph


def write(graph: DetectionGraph, file: Path) -> None:
    """Write ``<name>.xml``, and the weights in float32 beside it, ``<name>.bin``."""
    import openvino

    onnx = file.with_suffix(".onnx")
    to_onnx.write(graph, onnx)
    openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)
    onnx.unlink()


def read(file: Path, _graph: DetectionGraph | None = None) -> Run:
    """Load a file on the CPU, with as many threads as torch has and in float32 where a CPU would take less."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(file, "CPU", options)

    def run(images: Tensor) -> RawDetections:
        found = compiled(images.contiguous().numpy())
        # copies: the next call writes into the same memory
        boxes, scores, labels = (torch.from_numpy(found[place].copy()) for place in range(3))
        return boxes, scores, labels

    return run


OPENVINO = Format(".xml", ("onnx", "onnxscript", "openvino"), "openvino", write, read)
