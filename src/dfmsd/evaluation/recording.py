"""Detections in image files, collected as one COCO file, and the files that cannot be read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torchvision.ops import box_convert

from dfmsd.data.images import read_image
from dfmsd.detectors import Detector
from dfmsd.detectors.images import ImageLike
from dfmsd.detectors.prediction import NO_TRACK, Prediction
from dfmsd.detectors.tiling import Tiling
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.tracking import Tracker


class Speed(NamedTuple):
    """Throughput of a prediction run."""

    images: int
    median: float
    """Milliseconds to detect in one image, without reading, drawing and writing."""
    seconds: float
    """Total time."""

    def __str__(self) -> str:
        """Return one line."""
        rate = self.images / self.seconds
        return f"{self.images} images, {rate:.1f} images/s in total, {self.median:.1f} ms per image to detect (median)"


class Recorder:
    """Detect in images and collect the results.

    Args:
        detector: the detector, on its device.
        score: detections with lower scores are dropped, 0..1.
        size: longer side that images, or their tiles, are resized to, in pixels.
        tiling: how images are cut into tiles; None does not cut.
    """

    def __init__(self, detector: Detector, score: float, size: int, tiling: Tiling | None = None) -> None:
        self.detector = detector
        self.score = score
        self.size = size
        self.tiling = tiling
        self.times: list[float] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def predict(self, image: ImageLike, name: str, tracker: Tracker | None = None, **keys: int) -> Prediction:
        """Detect in one image, track, and record the result, with ``keys`` in its image entry."""
        start = time.perf_counter()
        tiles, overlap = self.tiling or (None, None)
        prediction = self.detector.predict(
            image, score=self.score, image_size=self.size, tiles=tiles, overlap=overlap
        )  # on the CPU: synchronized
        self.times.append(1e3 * (time.perf_counter() - start))
        if tracker is not None:
            prediction = tracker.update(prediction)
        number, (height, width) = len(self.images) + 1, prediction.image_size
        self.images.append({"id": number, "file_name": name, "width": width, "height": height, **keys})
        boxes = box_convert(prediction.boxes.double(), "xyxy", "xywh").tolist()
        ids = [NO_TRACK] * len(boxes) if prediction.track_ids is None else prediction.track_ids.tolist()
        columns = zip(boxes, prediction.scores.tolist(), prediction.labels.tolist(), ids, strict=True)
        for box, score, label, track_id in columns:
            annotation = {"id": len(self.annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": box}
            track = {} if track_id == NO_TRACK else {"track_id": track_id}
            self.annotations.append({**annotation, "score": score, "area": box[2] * box[3], "iscrowd": 0, **track})
        return prediction

    def as_coco(self) -> dict[str, Any]:
        """Return the contents of a COCO file; its annotations are in COCO's result format."""
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(self.detector.class_names)]
        return {"images": self.images, "categories": categories, "annotations": self.annotations}


@contextmanager
def noting(file: Path, unreadable: dict[Path, str]) -> Iterator[None]:
    """Note the error of a file that cannot be read, instead of raising it."""
    try:
        yield
    except DfmsdError as error:
        unreadable[file] = str(error)


def read_noted(file: Path, unreadable: dict[Path, str]) -> Tensor | None:
    """Return an image as `read_image` does; None if it cannot be read, which is noted now or was before."""
    if file not in unreadable:
        with noting(file, unreadable):
            return read_image(file)
    return None


def unreadable_error(unreadable: Mapping[Path, str], files: int, written: Path) -> DfmsdError:
    """Return one error about all files that cannot be read.

    Args:
        unreadable: file -> its error, see `noting`.
        files: number of all files.
        written: where the results of the others are.
    """
    first, *more = unreadable.values()
    if files == 1:
        return DfmsdError(first)
    others = f"; nor can {', '.join(map(str, list(unreadable)[1:3]))}{', ...' if len(more) > 2 else ''}"
    done = f"; the others are done, see {written}" if len(unreadable) < files else ""
    return DfmsdError(f"{len(unreadable)} of {files} files cannot be read: {first}{others if more else ''}{done}")
