"""Checks of what a `ModuleDetector` is made of, and of what its functions return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from dfmsd.detectors.featurepath import describe_value
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections

DETECTION_KEYS = ("boxes", "scores", "labels")
"""Keys of the detections in one image."""
EXPECTED = "boxes K x 4, scores K, labels K"


def check_module(module: object) -> None:
    """Check that the model is a module.

    Raises:
        DfmsdError: It is a class, a function or anything else.
    """
    if isinstance(module, nn.Module):
        return
    name = getattr(module, "__name__", type(module).__name__)
    if isinstance(module, type):
        raise DfmsdError(f"module: {name} is a class, not a module; pass an instance of it, such as {name}()")
    if callable(module):
        raise DfmsdError(
            f"module: {name} is a function, not an nn.Module; pass the module, and functions as run, loss and decode"
        )
    raise DfmsdError(f"module: expected an nn.Module, got {describe_value(module)}")


def check_functions(**functions: object) -> None:
    """Check the functions by name; None stands for one that is left out.

    Raises:
        DfmsdError: One of them cannot be called.
    """
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise DfmsdError(f"{name}: expected a function, got {describe_value(function)}")


def check_losses(named: object, owner: str) -> dict[str, Tensor]:
    """Return what ``loss`` has returned.

    Args:
        named: The result.
        owner: Name of the model, for messages.

    Raises:
        DfmsdError: It is no mapping of scalars.
    """
    if not isinstance(named, Mapping) or not named:
        raise DfmsdError(f"loss of {owner}: expected named scalars, got {describe_value(named)}; return a dict of them")
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.ndim:
            raise DfmsdError(f"loss of {owner}: {name} is {describe_value(value)}, expected a scalar; sum it")
    return dict(named)


def check_detections(results: object, sizes: Sequence[tuple[int, int]], classes: int) -> list[Detections]:
    """Return what ``decode`` has returned, best first and clipped to the images.

    Args:
        results: The result.
        sizes: Unpadded ``(height, width)`` of each image.
        classes: Number of classes.

    Raises:
        DfmsdError: It does not hold the detections of each image.
    """
    if not isinstance(results, list | tuple):
        raise DfmsdError(
            f"decode: expected a list with a dict of {', '.join(DETECTION_KEYS)} for each image, got"
            f" {describe_value(results)}"
        )
    if len(results) != len(sizes):
        raise DfmsdError(f"decode: expected detections of {len(sizes)} images, got {len(results)}")
    return [_check_image(result, size, classes) for result, size in zip(results, sizes, strict=True)]


def _check_image(result: object, size: tuple[int, int], classes: int) -> Detections:
    if not isinstance(result, Mapping) or not result.keys() >= set(DETECTION_KEYS):
        raise DfmsdError(
            f"decode: expected a dict of {', '.join(DETECTION_KEYS)} for each image, got {describe_value(result)}"
        )
    boxes, scores, labels = (result[key] for key in DETECTION_KEYS)
    if not all(isinstance(value, Tensor) for value in (boxes, scores, labels)) or not (
        scores.ndim == 1 and boxes.shape == (len(scores), 4) and labels.shape == scores.shape
    ):
        shapes = ", ".join(describe_value(value) for value in (boxes, scores, labels))
        raise DfmsdError(f"decode: expected tensors {EXPECTED}, got {shapes}")
    if labels.is_floating_point() or labels.is_complex():
        raise DfmsdError(f"decode: labels are {labels.dtype}, expected integers such as torch.int64")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DfmsdError(
            f"decode: labels {int(labels.min())}..{int(labels.max())} for {classes} class names; "
            "labels count from 0, without a background"
        )
    order = scores.argsort(descending=True, stable=True)
    clipped = clip_boxes_to_image(boxes[order], (int(size[0]), int(size[1])))
    return {"boxes": clipped, "scores": scores[order], "labels": labels[order]}
