"""NCNN, for phones and boards, converted by PNNX; suppression is left to the caller."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.dense import DENSE_OUTPUTS, DenseGraph, finish, refuse_queries
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import INPUT, DetectionGraph, trace
from dfmsd.utils.console import quiet

NAMES = {"in0": INPUT, **{f"out{index}": name for index, name in enumerate(DENSE_OUTPUTS)}}
"""Names that PNNX gives to inputs and outputs -> ours."""


def write(graph: DetectionGraph, file: Path) -> None:
    """Write ``<name>.ncnn.param`` and, next to it, the float32 weights ``<name>.ncnn.bin``, for one image.

    Raises:
        DfmsdError: ncnn lacks layers of the detector.
    """
    refuse_queries(graph, "ncnn has no layer that selects queries, which RT-DETR and similar models need")
    program = trace(DenseGraph(graph), graph.side, dynamic=False)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "model.pt"
        with torch.no_grad(), quiet():  # shapes are constants in the program, which PNNX needs
            example = torch.zeros(1, 3, graph.side, graph.side)
            traced: Any = torch.jit.trace(program.module(), example, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, script)
        text = _convert(script, graph.side)
        shutil.move(script.with_name("model.ncnn.bin"), file.with_suffix(".bin"))
    file.write_text(re.sub(rf"\b({'|'.join(NAMES)})\b", lambda match: NAMES[match[0]], text), encoding="utf-8")


def _convert(script: Path, side: int) -> str:
    """Convert a TorchScript file; the weights go next to it, the layers are returned."""
    import pnnx

    command = [pnnx.EXEC_PATH, script.name, f"inputshape=[1,3,{side},{side}]f32", "fp16=0"]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    param = script.with_name("model.ncnn.param")
    if done.returncode or not param.is_file():
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise DfmsdError(f"export: pnnx cannot convert this model ({reason}); use `format` onnx, openvino or torch")
    text = param.read_text(encoding="utf-8")
    # what PNNX cannot convert keeps its name in PyTorch
    missing = sorted({line.split()[0] for line in text.splitlines() if "." in line.split()[0]})
    if missing:
        raise DfmsdError(
            f"export: ncnn has no layer for {', '.join(missing)} of this model; use `format` onnx, openvino or torch,"
            " or another backbone"
        )
    return text


def read(file: Path, graph: DetectionGraph) -> Run:
    """Load a file on the CPU, in float32 and with as many threads as PyTorch uses."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise DfmsdError(f"export: ncnn cannot load {file.name}; use `format` onnx, openvino or torch")

    def run(images: Tensor) -> RawDetections:
        extractor = net.create_extractor()
        pixels = images[0].contiguous().numpy()  # ncnn's matrix does not own them
        extractor.input(INPUT, ncnn.Mat(pixels))
        found = [extractor.extract(name)[1] for name in DENSE_OUTPUTS]
        boxes, scores = (torch.tensor(matrix.numpy()).unsqueeze(0) for matrix in found)
        return finish(graph, boxes, scores)

    return run


NCNN = Format(".ncnn.param", ("ncnn", "pnnx"), "ncnn", write, read, dynamic=False, whole=False, outputs=DENSE_OUTPUTS)
