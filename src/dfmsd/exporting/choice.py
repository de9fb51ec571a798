"""The export formats by name, with suppression inside or outside of the file."""

from __future__ import annotations

from dfmsd.errors import DfmsdError, suggest
from dfmsd.exporting.formats import Format
from dfmsd.exporting.to_coreml import COREML
from dfmsd.exporting.to_executorch import EXECUTORCH
from dfmsd.exporting.to_litert import LITERT
from dfmsd.exporting.to_ncnn import NCNN
from dfmsd.exporting.to_onnx import ONNX
from dfmsd.exporting.to_onnx_dense import ONNX_DENSE
from dfmsd.exporting.to_openvino import OPENVINO
from dfmsd.exporting.to_torch import TORCH

FORMATS: dict[str, Format] = {
    "onnx": ONNX,
    "openvino": OPENVINO,
    "ncnn": NCNN,
    "litert": LITERT,
    "coreml": COREML,
    "executorch": EXECUTORCH,
    "torch": TORCH,
}
OUTSIDE: dict[str, Format] = {"onnx": ONNX_DENSE} | {name: form for name, form in FORMATS.items() if not form.whole}
"""Formats whose files can do without suppression."""


def choose_format(name: str, nms: str | None) -> Format:
    """Return a format.

    Args:
        name: one of `FORMATS`.
        nms: ``inside`` or ``outside`` of the file; None for inside where the format can.

    Raises:
        DfmsdError: there is no such format, or not with suppression there.
    """
    if name not in FORMATS:
        hint = suggest(str(name), FORMATS, f"the formats are {', '.join(FORMATS)}")
        raise DfmsdError(f"format: unknown format {name!r}; {hint}")
    if nms not in (None, "inside", "outside"):
        raise DfmsdError(f"`nms`: expected inside or outside, got {nms!r}")
    if nms == "inside" and not FORMATS[name].whole:
        whole = [other for other, form in FORMATS.items() if form.whole]
        raise DfmsdError(
            f"`nms` inside: {name} has no non-maximum suppression; the formats with it are {', '.join(whole)}"
        )
    if nms == "outside" and name not in OUTSIDE:
        raise DfmsdError(f"`nms` outside: not for `format` {name}; the formats with it are {', '.join(OUTSIDE)}")
    return OUTSIDE[name] if nms == "outside" else FORMATS[name]
