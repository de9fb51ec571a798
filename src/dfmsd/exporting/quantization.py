"""Post-training quantization of an ONNX file: int8 convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dfmsd.exporting.graph import INPUT
from dfmsd.utils.console import quiet

OPERATORS = ["Conv", "Gemm", "MatMul"]
"""Quantized operators; boxes, scores and suppression stay in float32."""


def quantize(file: Path, out: Path, images: Iterable[Tensor]) -> None:
    """Write a file with int8 weights and activations, using onnxruntime's static quantization.

    Args:
        file: in float32.
        out: file to write.
        images: for calibrating activation ranges, each ``N x 3 x side x side``.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = ({INPUT: batch.contiguous().numpy()} for batch in images)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with quiet():  # it recommends pre-processing, which the export has already done
        quantize_static(
            file,
            out,
            Reader(),
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},  # a single outlier image must not widen the range
        )
