"""Post-training quantisation of an ONNX file: convolutions and matrix products in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dfmsd.exporting.graph import INPUT
from dfmsd.utils.console import quiet

OPERATORS = ["Conv", "Gemm", "MatMul"]
"""The arithmetic; boxes, scores and suppression stay in float32."""


def quantize(file: Path, out: Path, images: Iterable[Tensor]) -> None:
    """Write a file whose weights and activations have 8 bits, by onnxruntime's static quantisation.

    Args:
        file: in float32.
        out: to write.
        images: to read the ranges of activations off, each ``N x 3 x side x side``.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = ({INPUT: batch.contiguous().numpy()} for batch in images)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with quiet():  # it would advise to prepare the file, which the export has done
        quantize_static(
            file,
            out,
            Reader(),
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},  # one odd image does not widen the range for all
        )
