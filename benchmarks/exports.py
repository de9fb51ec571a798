"""What an exported file is: how near to its model, how fast, how large, and what int8 costs.

    python benchmarks/exports.py ../shared/weights/bccd_fcos_lite0 runs/digits/ssdlite

The trained detectors of run folders in every format that is installed, on 50 images of their data, one thread; model
and file take turns. Files of any batch size run batches of 1, 3 and 8, and each format is tried at a second size. A
format that refuses a detector says why. What the JSON file has is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _measure import RESULTS, print_rows, write_results
from rich.console import Console

from dfmsd import export, load_detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting import exporter
from dfmsd.exporting.choice import FORMATS, choose_format
from dfmsd.exporting.exporter import PYTORCH, TOLERANCE
from dfmsd.exporting.formats import takes_batches
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.exporting.images import compared_files, images_root, open_images
from dfmsd.exporting.int8 import Quantized
from dfmsd.exporting.results import Exported
from dfmsd.exporting.verify import compare_detectors, read_exported
from dfmsd.runfolder import RunFolder

KINDS = [
    (name, nms)
    for name, form in FORMATS.items()
    for nms in ((None, "outside") if name == "onnx" else (None,))
    if all(find_spec(package) for package in form.packages) and not form.inspect
]
"""Format, and suppression where it is not the format's own."""
SECONDS = 10.0
"""Timing budget of a file."""
BATCHES = (1, 3, 8)
LARGER = 64
"""Pixels by which the second size is larger."""


def label(run: Path) -> str:
    """Return architecture, backbone and data of a run."""
    detector, root = (RunFolder(run).read_description() or {})["detector"], RunFolder(run).data_root()
    arch = Path(detector["arch"].removeprefix("hf:")).name if ":" in detector["arch"] else detector["arch"]
    parts = [arch, detector["backbone"] if ":" not in detector["arch"] else "", Path(root or "").name]
    return " ".join(filter(None, parts))


def measure(run: Path, format: str, nms: str | None, *, int8: bool) -> dict[str, Any]:
    """Export a model, and return what the export measures."""
    row = {"model": label(run), "format": format, "nms": nms}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / f"model{FORMATS[format].suffix}"
        try:
            found = export(run, format, out=file, int8=int8, nms=nms)
        except DfmsdError as error:
            return {**row, "refused": str(error)}
        row |= _result(found, folder) | {"batches": dict(in_batches(run, found, format, nms))}
        try:
            larger = export(run, format, out=file, nms=nms, image_size=found.side + LARGER)
        except DfmsdError as error:
            return {**row, "larger_refused": str(error)}
    return {**row, "larger_side": larger.side, "larger_difference": larger.difference.largest}


def in_batches(run: Path, found: Exported, format: str, nms: str | None) -> Iterator[tuple[int, float]]:
    """Yield batch sizes and the largest difference with each, if the file takes batches."""
    form, detector = choose_format(format, nms), load_detector(run)
    graph = DetectionGraph(detector, found.side).eval()
    if not takes_batches(form, graph):
        return
    exported, post = read_exported(found.file, form, graph), graph.post_processor
    images = torch.cat(list(open_images(compared_files(images_root(run, None))[: max(BATCHES)], found.side)))
    for size in BATCHES:
        difference = compare_detectors(
            detector, exported, [images[:size]], post.score_threshold, post.per_image, TOLERANCE
        )
        yield size, difference.largest


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
    """Measure what is missing, print a table and write JSON after every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), help="of these only")
    parser.add_argument("--no-int8", action="store_true", help="leave out int8, whose search for layers takes minutes")
    parser.add_argument("--repeats", type=int, help="ignored: the time of a file is a budget of its own")
    parser.add_argument("--out", type=Path, default=RESULTS / "exports.json", help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exporter.LATENCY_SECONDS = SECONDS
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for run in options.runs:
        for format, nms in KINDS:
            known = any((row["model"], row["format"], row["nms"]) == (label(run), format, nms) for row in rows)
            if not known and format in options.formats:
                int8 = format == "onnx" and nms is None and not options.no_int8
                rows.append(measure(run, format, nms, int8=int8))
                write_results(options.out, {"rows": rows})
    if kept := [row for row in rows if "refused" not in row]:
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
    for row in rows:
        if "refused" in row:
            Console().print(f"{row['model']}, {row['format']}: {row['refused']}")


if __name__ == "__main__":
    main()
