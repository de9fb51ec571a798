"""Export of a detector: write the file, run it in its runtime, and reject it if it differs from the model."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dfmsd.detectors import Detector, load_detector
from dfmsd.errors import DfmsdError
from dfmsd.estimation.timing import time_in_turns
from dfmsd.exporting.choice import choose_format
from dfmsd.exporting.formats import Format, takes_batches
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.exporting.images import calibration_files, compared_files, images_root, open_images, open_val
from dfmsd.exporting.int8 import Judge, Quantized, write_int8
from dfmsd.exporting.results import Exported, describe
from dfmsd.exporting.verify import Difference, compare_detectors, read_exported
from dfmsd.runfolder import RunFolder
from dfmsd.utils.extras import check_extra
from dfmsd.utils.files import check_output, check_writable, write_json
from dfmsd.utils.shapes import frame_of

logger = logging.getLogger("dfmsd")

TOLERANCE = 1e-3
"""Largest allowed difference of a score, and of a box coordinate as a fraction of the input side."""
BATCH_SIZE = 4
"""Size of the one batch that verifies batched inputs."""
LATENCY_SECONDS = 6.0
"""Timing budget for all latencies."""
PYTORCH = "PyTorch"


def export(
    model: str | Path,
    format: str,
    *,
    out: str | Path | None = None,
    images: str | Path | None = None,
    image_size: int | None = None,
    int8: bool = False,
    nms: str | None = None,
) -> Exported:
    """Export a detector; the file is only kept if it agrees with the model.

    A file that this machine cannot run is inspected instead, which takes no images.

    Args:
        model: see `dfmsd.detectors.load_detector`.
        format: one of `dfmsd.exporting.choice.FORMATS`.
        out: file to write; by default next to the model.
        images: folder of images or of a data set for the comparison; by default the data set of the model's run.
            With ``int8`` a data set is calibrated on its train split and gives the AP of its val split; plain images
            are calibrated on themselves.
        image_size: side of the square input in pixels; by default that of the model's run, otherwise 256.
        int8: also write a quantized file that loses at most `dfmsd.exporting.int8.MAX_LOST_AP`.
        nms: suppression ``inside`` or ``outside`` of the file; by default inside where the format can.

    Raises:
        DfmsdError: something is missing, the model cannot be exported, or the file differs from it.
    """
    form = choose_format(format, nms)
    if int8 and format != "onnx":
        raise DfmsdError(f"`int8` requires `format` onnx, got {format}")
    check_extra(f"`format` {format}", form.packages, form.extra)
    file = _output_file(Path(model), form, None if out is None else Path(out))
    _check_target(file, form)
    root = None if form.inspect and images is None else images_root(Path(model), images)
    image_files = compared_files(root) if root else []
    detector = load_detector(str(model))
    side = detector.choose_size(image_size, "`image_size`")
    val = open_val(root, side, detector.class_names) if root and int8 else None
    graph = DetectionGraph(detector, side).eval()
    batches = list(open_images(image_files, side))
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent) as folder:
        draft = Path(folder) / file.name
        form.write(graph, draft)
        if form.inspect:  # runs nothing, so it takes no images
            result = Exported(file, 0, side, None, {}, detector, inspected=form.inspect(draft, graph))
        else:
            exported = read_exported(draft, form, graph)
            difference = _verify(detector, exported, batches, graph, form)
            detectors: dict[str, Detector] = {PYTORCH: detector, format: exported}
            quantized: Quantized | None = None
            if root and int8:
                small = _int8_file(draft)
                load, judge = partial(read_exported, form=form, graph=graph), Judge(exported, batches, val)
                found = write_int8(draft, small, load, judge, calibration_files(root), side)
                quantized, detectors["int8"] = found._replace(file=file.with_name(small.name)), load(small)
            latency = _latencies(detectors, batches[0])
            result = Exported(file, len(batches), side, difference, latency, detector, quantized)
        for path in sorted(Path(folder).iterdir()):
            _move(path, file.parent / path.name)
    former = _int8_file(file)
    if former.exists() and not int8:
        logger.warning("%s is of an earlier export; remove it, or export with int8, too", former)
    write_json(file.with_name(f"{file.name}.json"), describe(format, form, graph, result))
    return result


def _verify(
    detector: Detector, exported: Detector, images: Sequence[Tensor], graph: DetectionGraph, form: Format
) -> Difference:
    batches = [*images, torch.cat(list(images[:BATCH_SIZE]))] if takes_batches(form, graph) else images
    post = graph.post_processor
    difference = compare_detectors(detector, exported, batches, post.score_threshold, post.per_image, TOLERANCE)
    if not difference.detections:
        raise DfmsdError(
            "export: the model detects nothing in these images, so the file cannot be compared; pass `images` that "
            "contain its objects, or train it longer"
        )
    if not difference.largest <= TOLERANCE:  # also true for NaN
        raise DfmsdError(
            f"export: the file differs from the model by {difference.boxes:.2g} of the input side in boxes and "
            f"{difference.scores:.2g} in scores, more than {TOLERANCE:g}, and was removed; try another `format`, or "
            "train the model longer"
        )
    return difference


def _latencies(detectors: Mapping[str, Detector], image: Tensor) -> dict[str, float]:
    """Time detection in one image, with the detectors in turns."""
    calls = {name: partial(detector.detect, image, [frame_of(image)]) for name, detector in detectors.items()}
    return time_in_turns(calls, LATENCY_SECONDS)


def _check_target(file: Path, form: Format) -> None:
    """Check that a file can be written, or that a folder is none but an older export."""
    if not form.manifest:
        check_output(file)
    elif file.exists() and not (file / form.manifest).is_file():
        raise DfmsdError(f"`out`: {file} exists and is no {form.suffix} folder, since it holds no {form.manifest}")
    else:
        check_writable(file.parent)


def _move(path: Path, target: Path) -> None:
    """Move a file or folder out of a temporary one, into which a former folder goes."""
    if target.is_dir():
        os.replace(target, path.with_name(f"{path.name}.former"))
    os.replace(path, target)


def _int8_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}.int8{file.suffix}")


def _output_file(model: Path, form: Format, out: Path | None) -> Path:
    if out is not None:
        if not out.name.endswith(form.suffix) or (out.is_dir() and not form.manifest):
            raise DfmsdError(f"`out`: expected a file ending in {form.suffix}, got {out}")
        return out
    if model.is_dir():
        return RunFolder(model).weights_file.with_suffix(form.infix + form.suffix)
    if model.is_file():
        return model.with_suffix(form.infix + form.suffix)
    raise DfmsdError(f"`out`: required because {model} is not a file or folder; pass a file ending in {form.suffix}")
