"""Adapter of any torchvision detector, and of GFL, which is built from their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from dfmsd.detectors.base import UNUSED_CLASSES
from dfmsd.detectors.inputsizes import longer_side
from dfmsd.detectors.torchvision.base import TorchvisionDetector
from dfmsd.detectors.torchvision.gfl import GFL
from dfmsd.detectors.torchvision.one_stage import OneStageDetector
from dfmsd.detectors.torchvision.ssd import SSDDetector
from dfmsd.detectors.torchvision.two_stage import TwoStageDetector
from dfmsd.errors import DfmsdError

__all__ = ["TorchvisionDetector", "keypoints_refused", "wrap_categories", "wrap_torchvision"]

WITH_BACKGROUND = {
    FasterRCNN: TwoStageDetector,
    MaskRCNN: TwoStageDetector,
    SSD: SSDDetector,
}
"""Model whose label 0 is background -> its adapter."""


def wrap_torchvision(
    model: nn.Module, class_names: Sequence[str], label_ids: Sequence[int] | None = None
) -> TorchvisionDetector:
    """Adapt a torchvision detector.

    The model becomes part of the result and is modified: pass a copy if you use it elsewhere. Of Mask R-CNN, only the
    boxes are run and trained.

    Args:
        model: An ``FCOS``, ``RetinaNet``, `GFL`, ``FasterRCNN``, ``MaskRCNN`` or ``SSD`` (SSD300, SSDLite) whose
            backbone returns several maps.
        class_names: Names of the classes, in the order of the detector's labels.
        label_ids: The model's label of each class; by default from 0, and from 1 for Faster R-CNN, Mask R-CNN and SSD,
            whose label 0 is background.

    Raises:
        DfmsdError: The model is not supported, or names and labels do not fit it.
    """
    kind = type(model)
    ids = range(len(class_names)) if label_ids is None else label_ids
    if kind in (FCOS, RetinaNet, GFL):
        return OneStageDetector(model, class_names, ids)
    if kind in WITH_BACKGROUND:
        return WITH_BACKGROUND[kind](model, class_names, [i + 1 for i in ids] if label_ids is None else ids)
    if kind is KeypointRCNN:
        raise keypoints_refused(kind.__name__)
    raise DfmsdError(
        f"{kind.__name__} is not supported: expected torchvision's FCOS, RetinaNet, FasterRCNN, MaskRCNN or SSD, or"
        " dfmsd's GFL"
    )


def wrap_categories(model: Any, categories: Sequence[str]) -> TorchvisionDetector:
    """Adapt a detector trained with torchvision by the names of all its labels.

    `UNUSED_CLASSES` among them stand for no object. Since it was trained behind its ``transform``, which dfmsd skips in
    its own trainings, that states the image size.

    Args:
        model: As in `wrap_torchvision`.
        categories: Name of each label, from 0 on.

    Raises:
        DfmsdError: As in `wrap_torchvision`.
    """
    labels = [label for label, category in enumerate(categories) if category not in UNUSED_CLASSES]
    detector = wrap_torchvision(model, [categories[label] for label in labels], labels)
    transform = model.transform
    side = max(transform.fixed_size or [longer_side(transform.min_size[-1], transform.max_size)])
    detector.image_size = detector.input_sizes.nearest(side)
    return detector


def keypoints_refused(name: str) -> DfmsdError:
    """Return the error for keypoint detectors."""
    return DfmsdError(
        f"{name} is not supported: Keypoint R-CNN detects persons alone and is trained for their keypoints, which"
        " no loss and no metric here uses; choose a Faster R-CNN or Mask R-CNN"
    )
