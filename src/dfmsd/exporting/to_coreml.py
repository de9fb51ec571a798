"""Core ML, for macOS and iOS; suppression is left to the caller. Other systems write it, but only macOS runs it."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.dense import DENSE_OUTPUTS, DenseGraph, finish, refuse_queries
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import INPUT, DetectionGraph, trace
from dfmsd.exporting.layers import Layer, layers_of
from dfmsd.utils.console import quiet

KINDS = ("conv", "linear")
"""Operations of Core ML that `layers_of` returns."""


def write(graph: DetectionGraph, file: Path) -> None:
    """Write a package in float32 for one image that returns all boxes and scores, for iOS 15 and macOS 12 or newer.

    Raises:
        DfmsdError: the detector has two stages or queries, or Core ML lacks operations of it.
    """
    refuse_queries(graph, "coremltools cannot convert RT-DETR and similar models")
    program = trace(DenseGraph(graph), graph.side, dynamic=False)
    with quiet(), redirect_stderr(io.StringIO()):  # progress bars
        import coremltools

        try:
            model = coremltools.convert(
                program.run_decompositions({}),
                outputs=[coremltools.TensorType(name) for name in DENSE_OUTPUTS],
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS15,
                compute_precision=coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
        except Exception as error:  # its frontend and passes raise anything
            raise DfmsdError(
                f"export: coremltools cannot convert this model ({foreign_message(error)}); use `format` onnx, openvino"
                " or torch, or another model"
            ) from error
        model.save(str(file))
    (file / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # not part of the package


def inspect(file: Path, graph: DetectionGraph) -> str:
    """Compare inputs, outputs, convolutions and matrix products of a package with the graph, without running it.

    Returns:
        What was compared.

    Raises:
        DfmsdError: they differ.
    """
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.models import MLModel

        model = MLModel(str(file), skip_model_load=True)
        spec = model.get_spec()
        program: Any = load(spec, spec.specificationVersion, model.weights_dir)
    dense, images = DenseGraph(graph).eval(), torch.zeros(1, 3, graph.side, graph.side)
    with torch.no_grad():
        tensors = dict(zip((INPUT, *DENSE_OUTPUTS), (images, *dense(images)), strict=True))
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    described = (*spec.description.input, *spec.description.output)
    found = {feature.name: tuple(feature.type.multiArrayType.shape) for feature in described}
    if found != expected:
        raise DfmsdError(f"export: the file has {found}, the model {expected}; it was removed; use another `format`")
    forms = layers_of(dense, graph.side)
    layers = [_layer(operation) for operation in program.functions["main"].operations if operation.op_type in KINDS]
    if len(layers) != len(forms):
        raise DfmsdError(
            f"export: the file has {len(layers)} convolutions and matrix products, the model {len(forms)}; it was"
            " removed; use another `format`"
        )
    for number, (layer, same) in enumerate(zip(layers, forms, strict=True)):
        if not any(form.is_near(layer) for form in same):
            raise DfmsdError(
                f"export: convolution or matrix product {number} of {len(layers)} of the file differs from the model's;"
                " it was removed; use another `format`"
            )
    return (
        f"only macOS runs Core ML; input, outputs and the weights of {len(layers)} convolutions and matrix products are"
        " the model's"
    )


def _layer(operation: Any) -> Layer:
    weight = torch.tensor(operation.weight.val)
    bias = weight.new_zeros(len(weight)) if operation.bias is None else torch.tensor(operation.bias.val)
    if operation.op_type == "linear":
        return Layer(weight, bias)
    strides, dilations = (tuple(map(int, one.val)) for one in (operation.strides, operation.dilations))
    return Layer(weight, bias, strides, dilations, int(operation.groups.val))


def read(file: Path, graph: DetectionGraph) -> Run:
    """Load a package on the CPU, which computes in float32."""
    import coremltools

    model = coremltools.models.MLModel(str(file), compute_units=coremltools.ComputeUnit.CPU_ONLY)

    def run(images: Tensor) -> RawDetections:
        found = model.predict({INPUT: images.contiguous().numpy()})
        boxes, scores = (torch.from_numpy(found[name]) for name in DENSE_OUTPUTS)
        return finish(graph, boxes, scores)

    return run


COREML = Format(
    ".mlpackage",
    ("coremltools",),
    "coreml",
    write,
    read,
    dynamic=False,
    whole=False,
    outputs=DENSE_OUTPUTS,
    manifest="Manifest.json",
    inspect=None if sys.platform == "darwin" else inspect,
)
