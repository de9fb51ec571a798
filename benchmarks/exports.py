"""What an exported file is: how near to its model, how fast, how large, and what int8 costs.

python benchmarks/exports.py --weights ../shared/weights --data ../shared/data

Trained detectors in every format that is installed, on 50 images each, one thread; the model and its files take turns.
A format that refuses a detector says why.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _measure import parse_arguments, print_rows, write_results

from dfmsd import export
from dfmsd.errors import DfmsdError
from dfmsd.exporting import exporter
from dfmsd.exporting.choice import FORMATS
from dfmsd.exporting.exporter import PYTORCH
from dfmsd.exporting.int8 import Quantized
from dfmsd.exporting.results import Exported

MODELS = {
    "bccd_fcos_lite0": "bccd",
    "digits_fcos_lite0": "digits",
    "digits_retinanet_lite2": "digits",
    "bccd_faster_rcnn_lite2": "bccd",
}
"""Run folder -> data set."""
KINDS = [
    (name, nms)
    for name, form in FORMATS.items()
    for nms in ((None, "outside") if name == "onnx" else (None,))
    if all(find_spec(package) for package in form.packages) and not form.inspect
]
"""Format, and suppression where it is not the format's own."""
SECONDS = 30.0
"""Timing budget of a file."""


def measure(model: Path, data: str, format: str, nms: str | None) -> dict[str, Any]:
    """Export a model, and return what the export measures."""
    row = {"model": model.name, "format": format, "nms": nms}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            found = export(
                model,
                format,
                out=folder / f"model{FORMATS[format].suffix}",
                images=data,
                int8=format == "onnx" and nms is None,
                nms=nms,
            )
        except DfmsdError as error:
            return {**row, "refused": str(error)}
        return {**row, **_result(found, folder)}


def _result(found: Exported, folder: Path) -> dict[str, Any]:
    small = found.quantized.file.name if found.quantized else ""
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".json" and file.name != small)
    result = {
        "images": found.images,
        "detections": found.difference.detections,
        "side": found.side,
        "boxes": found.difference.boxes,
        "scores": found.difference.scores,
        "latency_ms": found.latency,
        "MB": size / 1e6,
    }
    return result | ({"int8": _int8(found.quantized)} if found.quantized else {})


def _int8(found: Quantized) -> dict[str, Any]:
    assert found.before
    assert found.after
    assert found.plain
    return {
        "AP": found.before["AP"],
        "AP_all_int8": found.plain["AP"],
        "AP_int8": found.after["AP"],
        "agreement": found.agreement,
        "layers": found.layers,
        "float32_layers": list(found.kept),
        "MB": found.file.stat().st_size / 1e6,
    }


def main() -> None:
    """Measure, print a table and write JSON after every file."""
    options = parse_arguments(__doc__, "exports", repeats=1, weights="../shared/weights", data="../shared/data")
    torch.set_num_threads(1)
    exporter.LATENCY_SECONDS = SECONDS
    rows: list[dict[str, Any]] = []
    for name, data in MODELS.items():
        model = Path(options.weights) / name
        if not model.is_dir():
            print(f"{model}: not there, left out")
            continue
        for format, nms in KINDS:
            rows.append(measure(model, data if data == "digits" else str(Path(options.data) / data), format, nms))
            write_results(options.out, {"rows": rows})
    kept = [row for row in rows if "refused" not in row]
    if kept:
        print_rows(
            "exported files, one thread",
            [
                {
                    **{key: row[key] for key in ("model", "format", "nms", "boxes", "scores", "MB")},
                    "latency_ratio": row["latency_ms"][row["format"]] / row["latency_ms"][PYTORCH],
                }
                for row in kept
            ],
        )


if __name__ == "__main__":
    main()
