"""COCO metrics of a detector on a data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypedDict

import torch
from faster_coco_eval import COCO, COCOeval_faster
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader
from torchvision.ops import box_convert

from dfmsd.data.coco import CocoDetection
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.transforms import Sample, collate
from dfmsd.detectors.base import Detector
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Detections
from dfmsd.utils.classes import common_classes


class CocoResult(TypedDict):
    """One detection in COCO's result format; ``bbox`` is ``[x, y, width, height]`` in original pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


class Metrics(TypedDict):
    """COCO's average precisions, 0..1; none where the images hold no such object."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    per_class: dict[str, float | None]


def percent(value: float | None) -> str:
    """Write a metric of 0..1 in percent, and a dash where the images hold no such object."""
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
    """Detect in every image and score the boxes as COCO does.

    The detector's classes are matched to the data set's by name. The detector runs in eval mode and leaves in the mode
    it came in.

    Args:
        detector: Any detector.
        data: Not augmented: a data set, or a loader of one.
        limit: Use the first ``limit`` images only.
        batch_size: For a data set; a loader has its own.
        device: Move the detector there first; none = where it is.
        amp: Autocast to this dtype; none = float32.
        progress: Show a bar.

    Raises:
        DfmsdError: No class name in common, augmented data, or ``limit`` below 1.
    """
    loader, dataset = _loader(data, batch_size)
    if limit is not None and limit < 1:
        raise DfmsdError(f"limit: expected at least 1 image, got {limit}; raise it or leave it out")
    category_of = match_classes(detector.class_names, dataset.coco)
    if device is not None:
        detector.to(device)
    batches = track(_first(loader, limit or len(dataset)), "evaluate", total=len(loader), disable=not progress)
    results: list[CocoResult] = []
    image_ids: list[int] = []
    with _eval_mode(detector):
        for batch in batches:
            results += coco_results(detect(detector, batch, amp), batch, category_of)
            image_ids += batch.image_ids
    return coco_metrics(dataset.coco, results, image_ids)


def detect(detector: Detector, batch: Batch, amp: torch.dtype | None = None) -> list[Detections]:
    """Detect in one batch, in eval mode and without gradients, on the detector's own device."""
    device = next(itertools.chain(detector.parameters(), detector.buffers()), torch.empty(0)).device
    autocast = torch.autocast(device.type, amp) if amp else nullcontext()
    # no_grad, not inference_mode: anchors that a detector caches here must still serve its training
    with _eval_mode(detector), torch.no_grad(), autocast:
        return detector.detect(batch.images.to(device), batch.sizes)


def match_classes(class_names: Sequence[str], coco: CocoDetection) -> dict[int, int]:
    """Map a detector's labels to the data set's category ids by name, see `common_classes`; others are left out.

    Raises:
        DfmsdError: No name in common.
    """
    common = common_classes(class_names, coco.class_names)
    matched = {label: coco.category_ids[place] for label, place in common.items()}
    if not matched:
        raise DfmsdError(
            f"{coco.file}: none of its classes {_brief(coco.class_names)} is one of the detector's "
            f"{_brief(class_names)}; rename the categories or take another model"
        )
    return matched


def coco_results(detections: Sequence[Detections], batch: Batch, category_of: Mapping[int, int]) -> list[CocoResult]:
    """Write a batch's detections in COCO's result format, ready for JSON.

    Args:
        detections: One an image of the batch, boxes in pixels of the padded input.
        batch: Gives scales and image ids.
        category_of: Label to category id; detections of other labels are left out.
    """
    results: list[CocoResult] = []
    for found, (vertical, horizontal), image_id in zip(detections, batch.scales, batch.image_ids, strict=True):
        boxes = found["boxes"].detach().cpu().double() / torch.tensor([horizontal, vertical] * 2, dtype=torch.float64)
        boxes = box_convert(boxes, "xyxy", "xywh")
        for box, score, label in zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True):
            if label in category_of:
                results.append(CocoResult(image_id=image_id, category_id=category_of[label], bbox=box, score=score))
    return results


def coco_metrics(coco: CocoDetection, results: Sequence[CocoResult], image_ids: Sequence[int] | None = None) -> Metrics:
    """Score results against the annotation file: average precision over IoU 0.50:0.95, at most 100 detections an image.

    Args:
        coco: The split; its crowd regions neither count as objects nor make false positives.
        results: May be empty.
        image_ids: The images that were looked at; none = all.
    """
    # COCO adds keys to the entries it is given, so it gets copies of them; their boxes it only reads
    truth = COCO({name: [dict(entry) for entry in entries] for name, entries in coco.ground_truth.items()})
    found = truth.loadRes([dict(result) for result in results])
    evaluation = COCOeval_faster(truth, found, iouType="bbox")
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"]  # IoU x recall x class x area x detections
    order = [evaluation.params.catIds.index(category_id) for category_id in coco.category_ids]
    stats = [_known(value) for value in evaluation.stats[:6]]
    return Metrics(
        AP=stats[0],
        AP50=stats[1],
        AP75=stats[2],
        APs=stats[3],
        APm=stats[4],
        APl=stats[5],
        per_class={
            name: _known(precision[:, :, k, 0, -1].mean()) for name, k in zip(coco.class_names, order, strict=True)
        },
    )


def _known(value: float) -> float | None:
    """Give a metric, or none for COCO's -1: nothing to find."""
    return None if value < 0 else float(value)


def _brief(names: Sequence[str]) -> str:
    return f"[{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}]"


def _loader(
    data: DetectionDataset | DataLoader[Sample], batch_size: int
) -> tuple[DataLoader[Sample], DetectionDataset]:
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(dataset, DetectionDataset) or dataset.augmentation is not None:
        raise DfmsdError(
            "evaluate: expected a DetectionDataset without augmentation, or a loader of one; take data.val"
        )
    if isinstance(data, DataLoader):
        return data, dataset
    square = partial(collate, image_size=dataset.image_size)
    # a loader without a generator of its own draws from the global one
    return DataLoader(dataset, batch_size, collate_fn=square, generator=torch.Generator()), dataset


def _first(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Give the first ``count`` images, the last batch cut short if need be."""
    for batch in batches:
        yield Batch._make(field[:count] for field in batch)
        count -= len(batch.image_ids)
        if count <= 0:
            return


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and afterwards each back into its own; free where all are in it already."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
