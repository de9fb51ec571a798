"""A detector's boxes in image files as a COCO annotation file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from dfmsd.data.images import read_size
from dfmsd.data.inputs import find_images
from dfmsd.detectors import Detector, load_detector
from dfmsd.detectors.base import SHOWN_SCORE
from dfmsd.detectors.prediction import check_score
from dfmsd.detectors.tiling import read_tiling
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.recording import Recorder, Speed, noting, read_noted, unreadable_error
from dfmsd.utils.device import default_device
from dfmsd.utils.files import check_output, plain_path, to_json, write_output


def annotate(
    model: Detector | str,
    images: Sequence[str | Path],
    file: Path,
    score: float = SHOWN_SCORE,
    image_size: int | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> Speed:
    """Write a detector's boxes in images as the annotations of a data set; an image without one counts as empty.

    Args:
        model: a detector, or a reference, see `load_detector`.
        images: files and folders. File names are relative to the folder if there is one only, else to the folder that
            all images have in common.
        file: JSON file to create.
        score: detections with lower scores are dropped, 0..1.
        image_size: longer side in pixels; None uses that of the model's training, else 256.
        tiles: side of the tiles that larger images are cut into, in pixels; None does not cut, see `Detector.predict`.
        overlap: share of a tile that neighbors have in common, from 0 to below 1; None is 0.2.

    Raises:
        DfmsdError: ``file`` exists or cannot be written, an image is missing, or images cannot be read; if others can,
            these are done first.
    """
    check_score(score, "`score`")
    tiling = read_tiling(tiles, overlap, ("`tiles`", "`overlap`"))
    check_output(file, "`as_annotations`")
    if file.exists():
        raise DfmsdError(f"`as_annotations`: {file} exists; name a new file, or remove it")
    paths = find_images(images)
    folder = _common_folder(images, paths)
    unreadable: dict[Path, str] = {}
    for path in paths:
        with noting(path, unreadable):
            read_size(path)
    if len(unreadable) == len(paths):
        raise unreadable_error(unreadable, len(paths), file)
    detector = model if isinstance(model, Detector) else load_detector(model)
    size = detector.choose_size(image_size, "`image_size`")
    recorder = Recorder(detector.to(default_device()), score, size, tiling)
    start = time.perf_counter()
    for path in paths:
        image = read_noted(path, unreadable)  # the header alone was read before
        if image is not None:
            recorder.predict(image, plain_path(path).relative_to(folder).as_posix())
    write_output(file, to_json(recorder.as_coco()))
    if unreadable:
        raise unreadable_error(unreadable, len(paths), file)
    return Speed(len(recorder.times), median(recorder.times or [0.0]), time.perf_counter() - start)


def _common_folder(images: Sequence[str | Path], files: Sequence[Path]) -> Path:
    if len(images) == 1 and Path(images[0]).is_dir():
        return plain_path(images[0])
    return Path(os.path.commonpath([plain_path(file).parent for file in files]))
