"""Post-training quantization of an ONNX file: int8 convolutions and matrix products, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dfmsd.exporting.graph import INPUT
from dfmsd.utils.console import quiet

OPERATORS = ["Conv", "Gemm", "MatMul"]
"""Quantized operators; boxes, scores and suppression stay in float32."""


class Layer(NamedTuple):
    """The nodes of a file that share their weights."""

    name: str
    """Of the weights, such as ``backbone.body.conv_stem``."""
    nodes: tuple[str, ...]


class Quantizer:
    """ONNX Runtime's static quantization of one file, calibrated once: weights per channel, activations per tensor.

    Args:
        file: in float32.
        images: for the ranges of the activations, each ``N x 3 x side x side``.

    Attributes:
        layers: that can be quantized.
    """

    def __init__(self, file: Path, images: Iterable[Tensor]) -> None:
        from onnxruntime.quantization import CalibrationDataReader, create_calibrator

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
            def __init__(self) -> None:
                self.feeds: Iterator[dict[str, Any]] = ({INPUT: batch.contiguous().numpy()} for batch in images)

            def get_next(self) -> dict[str, Any] | None:
                return next(self.feeds, None)

        self.file = file
        self.layers = find_layers(file)
        augmented = file.with_suffix(".augmented")
        options = {"moving_average": True}  # the mean of the images' ranges, which a single outlier hardly widens
        calibrator = create_calibrator(file, OPERATORS, augmented_model_path=augmented, extra_options=options)
        with quiet():
            calibrator.collect_data(Reader())
            self._ranges = calibrator.compute_data()
        augmented.unlink()

    def write(self, out: Path, layers: Collection[Layer]) -> None:
        """Write a file in which these layers are int8."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        exact = [node for layer in self.layers if layer not in layers for node in layer.nodes]
        with quiet():
            quantizer = QDQQuantizer(
                load_model_with_shape_infer(self.file),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._ranges,
                nodes_to_quantize=[],  # all
                nodes_to_exclude=exact,
                op_types_to_quantize=OPERATORS,
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(out))


def find_layers(file: Path) -> list[Layer]:
    """List the layers of a file that can be quantized, in the order of execution."""
    import onnx

    graph = onnx.load(file).graph
    weights = {tensor.name for tensor in graph.initializer}
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in OPERATORS:
            name = next((name for name in node.input if name in weights), node.name)
            nodes.setdefault(name, []).append(node.name)
    return [Layer(_module(name), tuple(names)) for name, names in nodes.items()]


def _module(weight: str) -> str:
    return weight.removeprefix("decoder.").removeprefix("model.").removesuffix(".weight")
