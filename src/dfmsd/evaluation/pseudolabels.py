"""Pseudo-labels: a detector's confident boxes in unlabeled images, as a COCO annotation file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.split import DetectionSplit
from dfmsd.detectors.base import Detector
from dfmsd.evaluation.evaluate import coco_results, detect
from dfmsd.evaluation.flipping import detect_both_ways
from dfmsd.evaluation.matching import to_data_labels
from dfmsd.evaluation.thresholds import Threshold, above, choose_thresholds
from dfmsd.types import Batch, Detections
from dfmsd.utils.classes import common_classes, listed
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.console import console

Find = Callable[[Batch], list[Detections]]
"""Detects in a batch, with labels of the data set, on the CPU."""


def pseudo_labels(detector: Detector, data: CocoDataModule, device: torch.device | str | None = None) -> dict[str, Any]:
    """Label the images of `data.unlabeled` as `data.pseudo` says; classes are matched by name.

    Args:
        detector: Has at least one class of the data.
        data: Its images and settings.
        device: Device to move the detector to; None leaves it where it is.

    Returns:
        The contents of a COCO file, with a score on each annotation. File names are relative to `data.unlabeled`;
        ``info`` holds the settings and the thresholds of the classes.
    """
    config = data.config.pseudo
    if device is not None:
        detector.to(device)
    size = data.config.labeling_size
    known = common_classes(detector.class_names, data.class_names)
    find = partial(_find, detector, known, both_ways=config.flip)
    if config.score == AUTO:
        thresholds = _calibrated(find, data, size)
    else:
        assert config.score is not None
        thresholds = {label: Threshold(float(config.score), None) for label in known.values()}
    lowest = [thresholds[label].score if label in thresholds else inf for label in range(len(data.class_names))]
    names = {label: name for label, name in enumerate(data.class_names) if label in thresholds}
    return {
        "info": {
            "description": "pseudo-labels",
            "teacher": config.teacher,
            "image_size": size,
            "flip": config.flip,
            "thresholds": {name: thresholds[label]._asdict() for label, name in names.items()},
        },
        "images": _images(data),
        "categories": data.train.coco.listing["categories"],
        "annotations": _annotations(find, data, size, lowest),
    }


def calibration_images(data: CocoDataModule) -> DetectionSplit:
    """Return the annotated images on which thresholds are chosen: those held out, else those trained on."""
    return data.val.coco if data.config.holdout else data.labeled


def describe_labels(content: Mapping[str, Any], class_names: Iterable[str]) -> list[str]:
    """Say in a line each how many boxes there are, and from which scores on.

    Args:
        content: See `pseudo_labels`.
        class_names: Of the data.
    """
    thresholds = content["info"]["thresholds"]
    labeled = len({annotation["image_id"] for annotation in content["annotations"]})
    images = len(content["images"])
    lines = [
        f"pseudo-labels: {len(content['annotations'])} boxes in {labeled} of {images} images; "
        f"{images - labeled} without a confident detection stay unlabeled",
        f"lowest scores of pseudo-labels: {listed([_threshold(*item) for item in thresholds.items()])}",
    ]
    without = [name for name in class_names if name not in thresholds]
    if without:
        lines.append(
            f"no pseudo-labels of {listed(without)}: no detection of the teacher was right where it was judged"
        )
    return lines


def _find(detector: Detector, known: Mapping[int, int], batch: Batch, *, both_ways: bool) -> list[Detections]:
    found = detect_both_ways(detector, batch) if both_ways else detect(detector, batch)
    on_cpu = (Detections(boxes=d["boxes"].cpu(), scores=d["scores"].cpu(), labels=d["labels"].cpu()) for d in found)
    return [to_data_labels(detections, known) for detections in on_cpu]


def _calibrated(find: Find, data: CocoDataModule, size: int) -> dict[int, Threshold]:
    found, targets = [], []
    for batch in _tracked(data, calibration_images(data), size, "thresholds"):
        found += find(batch)
        targets += batch.targets
    return choose_thresholds(found, targets)


def _images(data: CocoDataModule) -> list[dict[str, Any]]:
    folder = Path(data.config.unlabeled or "").expanduser()
    return [
        {
            "id": -record.id,
            "file_name": record.path.relative_to(folder).as_posix(),
            "width": record.width,
            "height": record.height,
        }
        for record in data.unlabeled.records
    ]


def _annotations(find: Find, data: CocoDataModule, size: int, lowest: list[float]) -> list[dict[str, Any]]:
    category_of = dict(enumerate(data.train.coco.category_ids))
    annotations: list[dict[str, Any]] = []
    for batch in _tracked(data, data.unlabeled, size, "pseudo-labels"):
        kept = [above(detections, lowest) for detections in find(batch)]
        for result in coco_results(kept, batch, category_of):
            entry = {**result, "image_id": -result["image_id"], "area": result["bbox"][2] * result["bbox"][3]}
            annotations.append({"id": len(annotations) + 1, **entry, "iscrowd": 0})
    return annotations


def _tracked(data: CocoDataModule, split: DetectionSplit, size: int, what: str) -> Iterable[Batch]:
    loader: Any = data.loader_of(split, size)
    return track(loader, what, total=len(loader), console=console, transient=True)


def _threshold(name: str, threshold: Mapping[str, float | None]) -> str:
    f1 = threshold["f1"]
    return f"{name} {threshold['score']:.2f}" + ("" if f1 is None else f" (F1 {f1:.2f})")
