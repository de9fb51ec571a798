"""Write a detector for another runtime, run it there, and refuse it where it differs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.config import check_image_size
from dfmsd.data.digits import cached_digits
from dfmsd.data.images import read_image
from dfmsd.data.inputs import find_images, to_batch
from dfmsd.detectors import Detector, load_detector
from dfmsd.errors import DfmsdError
from dfmsd.estimation.timing import time_in_turns
from dfmsd.evaluation.evaluate import Metrics, evaluate, percent
from dfmsd.exporting.formats import Format, one_by_one
from dfmsd.exporting.graph import INPUT, OUTPUTS, DetectionGraph
from dfmsd.exporting.quantization import quantize
from dfmsd.exporting.to_executorch import EXECUTORCH
from dfmsd.exporting.to_onnx import ONNX
from dfmsd.exporting.to_openvino import OPENVINO
from dfmsd.exporting.to_torch import TORCH
from dfmsd.exporting.verify import Difference, ExportedDetector, compare_detectors
from dfmsd.runfolder import RunFolder
from dfmsd.utils.extras import check_extra
from dfmsd.utils.files import write_json

FORMATS: dict[str, Format] = {"onnx": ONNX, "openvino": OPENVINO, "executorch": EXECUTORCH, "torch": TORCH}
TOLERANCE = 1e-3
"""Largest difference of a score, and of a box's side as a fraction of the input's."""
CHECKED_IMAGES = 50
CHECKED_BATCH = 4
"""Images of the one batch that shows that a file takes batches."""
CALIBRATION_IMAGES = 100
LATENCY_SECONDS = 6.0
PYTORCH = "PyTorch"


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how.

    Attributes:
        model: see `load_detector`.
        format: one of `FORMATS`.
        out: file to write; none = beside the model.
        images: folder of images, or of a data set, to compare on; none = the data set of the model's run.
        image_size: side of the square input in pixels; none = that of the model's run, else 256.
        int8: write a quantised file too, calibrated on the data set's train split and measured on its val split.
    """

    model: str
    format: str
    out: Path | None = None
    images: str | None = None
    image_size: int | None = None
    int8: bool = False


class Quantized(NamedTuple):
    """What became of the file in 8 bits."""

    file: Path
    before: Metrics
    """Of the file in float32, on the val split."""
    after: Metrics


class Exported(NamedTuple):
    """What was written and how it compares."""

    file: Path
    images: int
    side: int
    """Of the input, in pixels."""
    difference: Difference
    latency: dict[str, float]
    """Median in ms of the detection in one image, of the model and the files."""
    quantized: Quantized | None = None

    def __str__(self) -> str:
        """Write it as a few lines."""
        boxes, scores, count = self.difference
        lines = [
            str(self.file),
            f"{self.images} images, {count} detections: largest difference {boxes:.1e} of the side in boxes "
            f"({boxes * self.side:.1e} pixels), {scores:.1e} in scores",
            f"one image, median: {', '.join(f'{name} {ms:.1f} ms' for name, ms in self.latency.items())}",
        ]
        if self.quantized:
            file, before, after = self.quantized
            lines += [str(file), f"AP {percent(before['AP'])} in float32, {percent(after['AP'])} in int8"]
        return "\n".join(lines)


def export(options: ExportOptions) -> Exported:
    """Export a detector; a file is only left where it agrees with the model.

    Raises:
        DfmsdError: something is missing, the model cannot be exported, or the file differs from it.
    """
    form = FORMATS[options.format]
    check_extra(f"--format {options.format}", form.packages, form.extra)
    if options.int8 and form is not ONNX:
        raise DfmsdError(f"--int8 quantises ONNX files; take --format onnx, or leave it out for {options.format}")
    out = _out(options, form)
    root = _images_root(options)
    files = find_images([_val(root)])[:CHECKED_IMAGES]
    detector = load_detector(options.model)
    side = detector.input_size if options.image_size is None else options.image_size
    check_image_size(side, "--image-size")
    data = CocoDataModule(DataConfig(root=str(root), image_size=side)) if options.int8 else None
    graph = DetectionGraph(detector, side).eval()
    images = [to_batch(read_image(file), side).images for file in files]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        file = Path(folder) / out.name
        form.write(graph, file)
        own = _load(form, file, graph)
        difference = _verify(detector, own, images, graph, form)
        contenders = {PYTORCH: detector, options.format: own}
        quantized = None
        if data is not None:
            small = file.with_name(f"{out.stem}.int8{out.suffix}")
            quantize(file, small, _calibration(data))
            contenders["int8"] = _load(form, small, graph)
            before, after = (evaluate(contenders[name], data.val_dataloader()) for name in (options.format, "int8"))
            quantized = Quantized(out.with_name(small.name), before, after)
        latency = _latency(contenders, images)
        for made in sorted(Path(folder).iterdir()):
            os.replace(made, out.parent / made.name)
    result = Exported(out, len(images), side, difference, latency, quantized)
    write_json(out.with_name(f"{out.name}.json"), _describe(options.format, detector, graph, result))
    return result


def _load(form: Format, file: Path, graph: DetectionGraph) -> ExportedDetector:
    run = form.read(file, graph)
    whole = run if _takes_batches(form, graph) else one_by_one(run)
    return ExportedDetector(whole, graph.candidates.detector.class_names)


def _takes_batches(form: Format, graph: DetectionGraph) -> bool:
    return form.dynamic and graph.batches


def _verify(
    detector: Detector, own: Detector, images: Sequence[Tensor], graph: DetectionGraph, form: Format
) -> Difference:
    batches = [*images, torch.cat(list(images[:CHECKED_BATCH]))] if _takes_batches(form, graph) else images
    found = compare_detectors(detector, own, batches, graph.selection.score_threshold, graph.selection.per_image)
    if not found.detections:
        raise DfmsdError(
            "export: the model finds nothing in these images, so that nothing can be compared; give --images of its "
            "objects, or train it further"
        )
    if not max(found.boxes, found.scores) <= TOLERANCE:  # nor where it is not a number
        raise DfmsdError(
            f"export: the file differs from the model by {found.boxes:.2g} of the input's side in boxes and "
            f"{found.scores:.2g} in scores, more than {TOLERANCE:g}, and was removed; try another --format, or a model "
            "that is further trained"
        )
    return found


def _latency(contenders: dict[str, Detector], images: Sequence[Tensor]) -> dict[str, float]:
    """Time the same image of a round with each contender, in turns."""

    def once(detector: Detector, image: Tensor) -> None:
        detector.detect(image, [(image.shape[-2], image.shape[-1])])

    return time_in_turns({name: partial(once, one, images[0]) for name, one in contenders.items()}, LATENCY_SECONDS)


def _calibration(data: CocoDataModule) -> Iterator[Tensor]:
    records = data.train.coco.records
    for record in records[:: -(-len(records) // CALIBRATION_IMAGES)]:
        yield to_batch(read_image(record.path), data.config.image_size).images


def _out(options: ExportOptions, form: Format) -> Path:
    model = Path(options.model)
    if options.out is not None:
        if options.out.suffix != form.suffix or options.out.is_dir():
            raise DfmsdError(f"--out: expected a file that ends in {form.suffix}, got {options.out}")
        return options.out
    if model.is_dir():
        return model / f"student{form.suffix}"
    if model.is_file():
        return model.with_suffix(form.suffix)
    raise DfmsdError(
        f"--out: {options.model} is no run folder and no file to write beside; give one that ends in {form.suffix}"
    )


def _images_root(options: ExportOptions) -> Path:
    root = options.images or RunFolder(Path(options.model)).data_root()
    if root is None:
        raise DfmsdError(
            f"--images: {options.model} is no run folder, which would tell its data; give a folder of images"
        )
    return cached_digits() if root == "digits" else Path(root).expanduser()


def _val(root: Path) -> Path:
    """Give the folder of the val split, or the folder itself where it is no data set."""
    return root / "val" if (root / "annotations").is_dir() else root


def _describe(name: str, detector: Detector, graph: DetectionGraph, result: Exported) -> dict[str, object]:
    """Tell what one must know to use the file."""
    selection = graph.selection
    quantized = result.quantized
    return {
        "format": name,
        "input": {INPUT: ["N" if _takes_batches(FORMATS[name], graph) else 1, 3, graph.side, graph.side]},
        "outputs": list(OUTPUTS),
        "class_names": list(detector.class_names),
        "suppression": {
            "inside": FORMATS[name].whole,
            "iou": selection.nms_threshold if selection.suppresses else None,
            "above": selection.score_threshold,
            "per_image": selection.per_image,
            "class_of": selection.class_of.tolist(),
        },
        "checked": {"images": result.images, **result.difference._asdict(), "latency_ms": result.latency},
        "int8": {"file": quantized.file.name, "before": quantized.before, "after": quantized.after}
        if quantized
        else None,
    }
