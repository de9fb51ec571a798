"""COCO metrics of a detector on a data set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from hotcoco import COCO
from rich.progress import track
from torch.utils.data import DataLoader
from torchvision.ops import box_convert

from dfmsd.data.batching import collate
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.split import DetectionSplit
from dfmsd.data.splitcheck import check_measurable
from dfmsd.data.transforms import Sample
from dfmsd.detectors.base import Detector
from dfmsd.detectors.inference import device_of, eval_mode
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.precision import average, measure_precision
from dfmsd.types import Batch, Detections
from dfmsd.utils.boxes import drop_empty
from dfmsd.utils.classes import common_classes
from dfmsd.utils.console import console

logger = logging.getLogger("dfmsd")


class CocoResult(TypedDict):
    """One detection in COCO's result format; ``bbox`` is ``[x, y, width, height]`` in original pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


class Metrics(TypedDict):
    """COCO's average precisions, 0..1; None if the images contain no such object."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    per_class: dict[str, float | None]


def percent(value: float | None) -> str:
    """Format a metric of 0..1 in percent; None, without such an object in the images, becomes a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def evaluate(
    detector: Detector,
    data: DetectionDataset | DataLoader[Sample],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    progress: bool = False,
) -> Metrics:
    """Detect in every image and compute COCO's metrics.

    The detector's classes are matched to the data set's by name. The detector runs in eval mode; its mode is restored
    afterwards.

    Args:
        detector: The detector.
        data: A data set without augmentation, or a loader of one.
        limit: Use the first ``limit`` images only.
        batch_size: Batch size for a data set; a loader has its own.
        device: Device to move the detector to; None leaves it where it is.
        amp: Autocast to this dtype; None computes in float32.
        progress: Show a progress bar.

    Raises:
        DfmsdError: No class name in common, no annotated object, augmented data, ``limit`` below 1, or ``amp`` is no
            type that a device can compute in.
    """
    loader, dataset = _loader(data, batch_size)
    if amp is not None and not (isinstance(amp, torch.dtype) and amp.is_floating_point):
        raise DfmsdError(f"amp must be a floating type, such as torch.bfloat16, or None, got {amp!r}")
    if limit is not None and limit < 1:
        raise DfmsdError(f"limit must be at least 1 image, got {limit}")
    check_measurable(dataset.coco, limit)
    category_of = match_classes(detector.class_names, dataset.coco)
    if device is not None:
        detector.to(device)
    images = _first(loader, limit or len(dataset))
    batches = track(images, "evaluate", total=len(loader), console=console, disable=not progress)
    results: list[CocoResult] = []
    image_ids: list[int] = []
    with eval_mode(detector):
        for batch in batches:
            results += coco_results(detect(detector, batch, amp), batch, category_of)
            image_ids += batch.image_ids
    return coco_metrics(dataset.coco, results, image_ids)


def detect(detector: Detector, batch: Batch, amp: torch.dtype | None = None) -> list[Detections]:
    """Detect in one batch, in eval mode and without gradients, on the detector's device.

    Boxes without area are dropped: clipping to a narrow image leaves them of objects beyond its edge.
    """
    device = device_of(detector)
    autocast = torch.autocast(device.type, amp) if amp else nullcontext()
    # no_grad, not inference_mode: anchors cached by a detector must still serve its training
    with eval_mode(detector), torch.no_grad(), autocast:
        return [drop_empty(found) for found in detector.detect(batch.images.to(device), batch.sizes)]


def match_classes(class_names: Sequence[str], coco: DetectionSplit) -> dict[int, int]:
    """Map a detector's labels to the data set's category ids by name, see `common_classes`; others are omitted.

    Raises:
        DfmsdError: No name in common.
    """
    common = common_classes(class_names, coco.class_names)
    matched = {label: coco.category_ids[place] for label, place in common.items()}
    if not matched:
        raise DfmsdError(
            f"{coco.file}: none of its classes {_brief(coco.class_names)} is one of the detector's "
            f"{_brief(class_names)}; rename the categories or choose another model"
        )
    return matched


def warn_of_lacking_classes(class_names: Sequence[str], data: DetectionDataset | DataLoader[Sample]) -> None:
    """Log the classes of a data set that a detector lacks, if it has others of them.

    Args:
        class_names: Of the detector.
        data: As in `evaluate`.
    """
    _, dataset = _loader(data, 1)
    names = dataset.coco.class_names
    found = common_classes(class_names, names).values()
    lacking = [name for label, name in enumerate(names) if label not in found]
    if found and lacking:
        logger.warning(
            "%s: the detector lacks %d of %d classes, whose objects count as missed: %s",
            dataset.coco.file,
            len(lacking),
            len(names),
            _brief(lacking),
        )


def coco_results(detections: Sequence[Detections], batch: Batch, category_of: Mapping[int, int]) -> list[CocoResult]:
    """Convert a batch's detections to COCO's result format, ready for JSON.

    Args:
        detections: Detections in each image of the batch, boxes in pixels of the padded input.
        batch: The batch, for its scales and image ids.
        category_of: Category id of each label; detections with other labels are dropped.
    """
    results: list[CocoResult] = []
    for result, (vertical, horizontal), image_id in zip(detections, batch.scales, batch.image_ids, strict=True):
        boxes = result["boxes"].detach().cpu().double() / torch.tensor([horizontal, vertical] * 2, dtype=torch.float64)
        boxes = box_convert(boxes, "xyxy", "xywh")
        for box, score, label in zip(boxes.tolist(), result["scores"].tolist(), result["labels"].tolist(), strict=True):
            if label in category_of:
                results.append(CocoResult(image_id=image_id, category_id=category_of[label], bbox=box, score=score))
    return results


def coco_metrics(
    coco: DetectionSplit, results: Sequence[CocoResult], image_ids: Sequence[int] | None = None
) -> Metrics:
    """Compute average precision over IoU 0.50:0.95, with at most 100 detections per image.

    Args:
        coco: The split; its crowd regions neither count as objects nor cause false positives.
        results: Detections, possibly none.
        image_ids: The images that were evaluated; None for all.
    """
    truth = _to_coco(coco)
    rows = [(one["image_id"], *one["bbox"], one["score"], one["category_id"]) for one in results]
    detections = np.array(rows, np.float64).reshape(-1, 7)
    precision, places = measure_precision(truth, detections, image_ids)
    return Metrics(
        AP=average(precision[..., 0]),
        AP50=average(precision[0, ..., 0]),
        AP75=average(precision[5, ..., 0]),
        APs=average(precision[..., 1]),
        APm=average(precision[..., 2]),
        APl=average(precision[..., 3]),
        per_class={
            name: average(precision[:, :, places[category_id], 0])
            for name, category_id in zip(coco.class_names, coco.category_ids, strict=True)
        },
    )


def _to_coco(coco: DetectionSplit) -> COCO:
    """Return the ground truth of a split; no Python object is made for an annotation."""
    truth, listed = coco.truth, coco.listing
    return COCO.from_arrays(
        listed["images"],
        listed["categories"],
        truth.images,
        np.array(coco.category_ids, np.int64)[truth.labels],
        truth.boxes,
        area=truth.areas,
        iscrowd=truth.crowds,
    )


def _brief(names: Sequence[str]) -> str:
    return f"[{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}]"


def _loader(
    data: DetectionDataset | DataLoader[Sample], batch_size: int
) -> tuple[DataLoader[Sample], DetectionDataset]:
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(dataset, DetectionDataset) or dataset.augmentation is not None:
        raise DfmsdError(
            "evaluate: expected a DetectionDataset without augmentation, or a loader of one; pass data.val"
        )
    if isinstance(data, DataLoader):
        return data, dataset
    square = partial(collate, image_size=dataset.image_size)
    # a loader without its own generator would draw from the global one
    return DataLoader(dataset, batch_size, collate_fn=square, generator=torch.Generator()), dataset


def _first(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yield the first ``count`` images, truncating the last batch if necessary."""
    for batch in batches:
        yield Batch._make(None if field is None else field[:count] for field in batch)
        count -= len(batch.image_ids)
        if count <= 0:
            return
