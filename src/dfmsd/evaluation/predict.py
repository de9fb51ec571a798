"""Detections in images and videos: drawn, and as one COCO file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dfmsd.data.config import check_image_size
from dfmsd.data.images import read_image, read_size
from dfmsd.data.inputs import find_images, to_batch
from dfmsd.detectors import Detector, load_detector
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import coco_results, detect
from dfmsd.utils.console import quiet
from dfmsd.utils.device import default_device, synchronize
from dfmsd.utils.extras import import_extra
from dfmsd.utils.files import write_json

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
PREDICTIONS = "predictions.json"
DRAWN = (".jpg", ".jpeg", ".png")
"""Endings that a drawn image keeps; others become PNG."""

Pixels = npt.NDArray[np.uint8]


class Speed(NamedTuple):
    """How fast images went through."""

    images: int
    median: float
    """Milliseconds of the detection in one image, without reading, drawing and writing."""
    seconds: float
    """Of everything."""

    def __str__(self) -> str:
        """Write it as one line."""
        rate = self.images / self.seconds
        return (
            f"{self.images} images, {rate:.1f} images/s all in all, {self.median:.1f} ms per image to detect (median)"
        )


def predict(
    model: str, images: Sequence[str | Path], out: Path, score: float = 0.3, image_size: int | None = None
) -> Speed:
    """Write each image and video with the detections drawn, and ``predictions.json``, a COCO file with scores.

    Args:
        model: see `load_detector`.
        images: files and folders.
        out: folder that is written into; files keep their names, and in folders their place.
        score: detections below are left out, 0..1.
        image_size: longer side in pixels; none = that of the model's run, else 256.

    Raises:
        DfmsdError: something is missing or cannot be read, or a file would be written over itself.
    """
    if not 0 <= score <= 1:
        raise DfmsdError(f"--score: expected a number in 0..1, got {score}")
    supervision = _supervision()
    files = find_images(images, VIDEOS, exclude=out)
    targets = _targets(files, out)
    for file in files:
        _check(file, supervision)
    detector = load_detector(model)
    size = detector.input_size if image_size is None else image_size
    check_image_size(size, "--image-size")
    predictor = _Predictor(detector.to(default_device()), score, size, supervision)
    start = time.perf_counter()
    for file, target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        name = os.path.relpath(target.with_name(file.name), out)
        if _is_video(file):
            predictor.video(file, name, target)
        else:
            Image.fromarray(predictor.image(read_image(file), name)).save(target)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PREDICTIONS, predictor.as_coco())
    return Speed(len(predictor.times), median(predictor.times), time.perf_counter() - start)


class _Predictor:
    """Detect and draw, and gather what was found."""

    def __init__(self, detector: Detector, score: float, size: int, supervision: ModuleType) -> None:
        self.detector = detector
        self.score = score
        self.size = size
        self.supervision = supervision
        self.times: list[float] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def image(self, image: Tensor, name: str, **more: int) -> Pixels:
        """Detect in one image, ``3 x H x W``; gives it with the detections drawn, ``H x W x 3``, RGB."""
        number, (height, width) = len(self.images) + 1, image.shape[-2:]
        batch = to_batch(image, self.size, number)
        start = time.perf_counter()
        found = detect(self.detector, batch)
        synchronize(default_device())
        self.times.append(1e3 * (time.perf_counter() - start))
        category_of = {label: label + 1 for label in range(len(self.detector.class_names))}
        results = [one for one in coco_results(found, batch, category_of) if one["score"] >= self.score]
        self.images.append({"id": number, "file_name": name, "width": width, "height": height, **more})
        for result in results:
            area = result["bbox"][2] * result["bbox"][3]
            self.annotations.append({"id": len(self.annotations) + 1, **result, "area": area, "iscrowd": 0})
        return self._draw(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), results)

    def video(self, file: Path, name: str, target: Path) -> None:
        """Detect in each frame, whose number stands beside the file's name."""
        sv = self.supervision
        with sv.VideoSink(str(target), sv.VideoInfo.from_video_path(str(file))) as sink:
            for place, frame in enumerate(sv.get_video_frames_generator(str(file))):
                image = torch.from_numpy(np.ascontiguousarray(frame[:, :, ::-1])).permute(2, 0, 1)
                sink.write_frame(np.ascontiguousarray(self.image(image, name, frame=place)[:, :, ::-1]))

    def as_coco(self) -> dict[str, Any]:
        """Give all that was found as the content of a COCO file; its annotations are COCO results."""
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(self.detector.class_names)]
        return {"images": self.images, "categories": categories, "annotations": self.annotations}

    def _draw(self, pixels: Pixels, results: Sequence[Any]) -> Pixels:
        boxes = np.array([one["bbox"] for one in results], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([one["category_id"] - 1 for one in results], dtype=np.int64)
        found = self.supervision.Detections(xyxy=boxes, class_id=labels)
        names = [f"{self.detector.class_names[one['category_id'] - 1]} {one['score']:.2f}" for one in results]
        sv, size = self.supervision, (pixels.shape[1], pixels.shape[0])
        thickness, scale = sv.calculate_optimal_line_thickness(size), max(0.4, sv.calculate_optimal_text_scale(size))
        labels_on = sv.LabelAnnotator(
            text_scale=scale, text_thickness=max(1, thickness - 1), text_padding=2 * thickness
        )
        # supervision draws on blue, green and red
        drawn = sv.BoxAnnotator(thickness=thickness).annotate(np.ascontiguousarray(pixels[:, :, ::-1]), found)
        drawn = labels_on.annotate(drawn, found, names)
        turned: Pixels = np.ascontiguousarray(drawn[:, :, ::-1])
        return turned


def _supervision() -> ModuleType:
    with quiet():  # that OpenCV would be faster: drawing is not what takes the time here
        module: ModuleType = import_extra("predict", "supervision", "predict")
    return module


def _targets(files: Sequence[Path], out: Path) -> list[Path]:
    """Tell where each file's drawing goes.

    Raises:
        DfmsdError: where the file itself lies, or where another's goes.
    """
    common = Path(os.path.commonpath([file.absolute().parent for file in files]))
    targets: list[Path] = []
    for file in files:
        target = out / file.absolute().relative_to(common)
        if _is_video(file):
            target = target.with_suffix(".mp4")
        elif file.suffix.lower() not in DRAWN:
            target = target.with_name(f"{file.name}.png")
        if target.resolve() == file.resolve() or target in targets:
            raise DfmsdError(f"--out: {file} would be drawn over {target}; choose another folder, or rename the file")
        targets.append(target)
    return targets


def _check(file: Path, supervision: ModuleType) -> None:
    """Look at a file's header, before any work."""
    if not _is_video(file):
        read_size(file)
        return
    try:
        with quiet():
            supervision.VideoInfo.from_video_path(str(file))
    except Exception as error:  # a broken file breaks its decoder in any way
        raise DfmsdError(f"{file}: cannot be decoded as a video ({error}); replace or remove it") from error


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS
