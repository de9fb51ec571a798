"""Detections in image and video files: drawn, and as one COCO file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from dfmsd.data.images import read_size
from dfmsd.data.inputs import find_images
from dfmsd.detectors import Detector, load_detector
from dfmsd.detectors.base import SHOWN_SCORE
from dfmsd.detectors.drawing import import_supervision
from dfmsd.detectors.prediction import check_score
from dfmsd.detectors.tiling import read_tiling
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.recording import Recorder, Speed, noting, read_noted, unreadable_error
from dfmsd.evaluation.tracking import Tracker, check_tracking
from dfmsd.utils.console import quiet
from dfmsd.utils.device import default_device
from dfmsd.utils.files import check_writable, make_folder, plain_path, refuse_others_files, write_json

logger = logging.getLogger("dfmsd")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
PREDICTIONS = "predictions.json"
COMPLETE = 0.9
"""Share of the frames that a video's header announces, below which it counts as cut off."""
KEPT_FORMATS = (".jpg", ".jpeg", ".png")
"""Suffixes that a drawn image keeps; others become PNG."""


def predict(
    model: Detector | str,
    images: Sequence[str | Path],
    out: Path,
    score: float = SHOWN_SCORE,
    image_size: int | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    track: bool = False,
) -> Speed:
    """Write every image and video with its detections drawn, and ``predictions.json``, a COCO file with scores.

    Args:
        model: a detector, or a reference, see `load_detector`.
        images: files and folders.
        out: folder to write to; files keep their names, and their place in folders.
        score: detections with lower scores are dropped, 0..1.
        image_size: longer side in pixels; None uses that of the model's training, else 256.
        tiles: side of the tiles that larger images are cut into, in pixels; None does not cut, see `Detector.predict`.
        overlap: share of a tile that neighbors have in common, from 0 to below 1; None is 0.2.
        track: give the objects of a video ids that stay from frame to frame; videos only.

    Raises:
        DfmsdError: supervision, trackers or a file is missing, an image is to be tracked, a drawing would overwrite an
            input or a file that no earlier call has written, or files cannot be read; if others can, these are done
            first.
    """
    check_score(score, "`score`")
    tiling = read_tiling(tiles, overlap, ("`tiles`", "`overlap`"))
    import_supervision("predict")
    files = find_images(images, VIDEOS, exclude=out)
    if track:
        check_tracking([file for file in files if not _is_video(file)])
    targets = output_paths(files, out)
    refuse_others_files(targets, out / PREDICTIONS)
    for folder in {out, *(target.parent for target in targets)}:
        check_writable(folder)
    unreadable: dict[Path, str] = {}
    for file in files:
        with noting(file, unreadable):
            _check_readable(file)
    if len(unreadable) == len(files):
        raise unreadable_error(unreadable, len(files), out / PREDICTIONS)
    detector = model if isinstance(model, Detector) else load_detector(model)
    size = detector.choose_size(image_size, "`image_size`")
    make_folder(out)
    recorder = Recorder(detector.to(default_device()), score, size, tiling)
    start = time.perf_counter()
    try:
        for file, target in zip(files, targets, strict=True):
            if file in unreadable:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            name = os.path.relpath(target.with_name(file.name), out)
            if _is_video(file):
                _predict_video(recorder, file, name, target, track, unreadable)
                continue
            image = read_noted(file, unreadable)  # the header alone was read before
            if image is not None:
                recorder.predict(image, name).plot().save(target)
    finally:  # also what was done before Ctrl-C, so that the same call can be repeated
        write_json(out / PREDICTIONS, recorder.as_coco())
    if unreadable:
        raise unreadable_error(unreadable, len(files), out / PREDICTIONS)
    return Speed(len(recorder.times), median(recorder.times or [0.0]), time.perf_counter() - start)


def output_paths(files: Sequence[Path], out: Path) -> list[Path]:
    """Return the path of each file's drawing.

    Raises:
        DfmsdError: A drawing would overwrite an input file or another drawing.
    """
    common = Path(os.path.commonpath([plain_path(file).parent for file in files]))
    taken = {file.resolve(): file for file in files}
    targets: list[Path] = []
    for file in files:
        target = out / plain_path(file).relative_to(common)
        if _is_video(file):
            target = target.with_suffix(".mp4")
        elif file.suffix.lower() not in KEPT_FORMATS:
            target = target.with_name(f"{file.name}.png")
        place = target.resolve()
        if place in taken:
            other = taken[place]
            over_input = f"the drawing of {file} would overwrite"
            twice = f"the drawings of {other} and {file} would both be"
            clash = over_input if other.resolve() == place else twice
            raise DfmsdError(f"`out`: {clash} {target}; choose another folder, or rename the file")
        taken[place] = file
        targets.append(target)
    return targets


def _predict_video(
    recorder: Recorder, file: Path, name: str, target: Path, track: bool, unreadable: dict[Path, str]
) -> None:
    """Detect in every frame, whose number is recorded next to the file's name; note a video without any."""
    sv = import_supervision("predict")
    info = sv.VideoInfo.from_video_path(str(file))
    tracker = Tracker(recorder.score, info.fps) if track else None
    frames = 0
    with sv.VideoSink(str(target), info) as sink:
        for frames, frame in enumerate(sv.get_video_frames_generator(str(file)), start=1):
            drawn = recorder.predict(frame[:, :, ::-1], name, tracker, frame=frames - 1).plot()  # video frames are BGR
            sink.write_frame(np.ascontiguousarray(np.asarray(drawn)[:, :, ::-1]))
    announced = info.total_frames or 0  # an estimate in some formats
    if not frames:
        target.unlink(missing_ok=True)
        unreadable[file] = f"{file}: none of its frames can be decoded; replace or remove it"
    elif frames < COMPLETE * announced:
        logger.warning("%s: %d of about %d frames could be read; the file may be cut off", file, frames, announced)


def _check_readable(file: Path) -> None:
    """Read a file's header, before any work.

    Raises:
        DfmsdError: It cannot be decoded.
    """
    if not _is_video(file):
        read_size(file)
        return
    try:
        with quiet():
            info = import_supervision("predict").VideoInfo.from_video_path(str(file))
        if min(info.resolution_wh) < 1:
            raise ValueError("it has no picture")
    except Exception as error:  # decoders of damaged files raise any kind of exception
        raise DfmsdError(f"{file}: cannot be decoded as a video ({error}); replace or remove it") from error


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS
