"""torchvision's trained detectors, by the names of their weights."""

from __future__ import annotations

from typing import Any

import torchvision
from torchvision.models.detection import KeypointRCNN

from dfmsd.detectors.config import torchvision_archs
from dfmsd.detectors.torchvision.base import TorchvisionDetector
from dfmsd.detectors.torchvision.models import build_untrained
from dfmsd.detectors.torchvision.wrap import keypoints_refused, wrap_categories
from dfmsd.detectors.weights import download_weights
from dfmsd.errors import DfmsdError, suggest


def arch_of_weights(name: str) -> str:
    """Return the name of the builder of torchvision weights.

    Raises:
        DfmsdError: The name is unknown.
    """
    return _find(name)[0]


def load_torchvision(name: str, *, trained: bool = True) -> TorchvisionDetector:
    """Load a detector with its own classes, in eval mode.

    Args:
        name: Name of torchvision weights.
        trained: False leaves the weights random, so that none are downloaded.

    Raises:
        DfmsdError: The name is unknown, or its weights are unavailable.
    """
    builder, weights = _find(name)
    categories = weights.meta["categories"]
    if trained:
        # torchvision's builder unpickles the cached file without restrictions, so it is read safely first. The builder
        # is needed: it freezes the batch normalization and sets the epsilon that the weights were trained with.
        download_weights(weights)
        model = torchvision.models.get_model(builder, weights=weights)
    else:
        model = build_untrained(builder, len(categories))
    return wrap_categories(model, categories).eval()


def known_weights() -> dict[str, tuple[str, Any]]:
    """Return the builder's name and the weights of all of torchvision's detectors, by the names of the weights."""
    return {
        f"{enum.__name__}.{member}": (builder, weights)
        for builder in torchvision_archs()
        for enum in [torchvision.models.get_model_weights(builder)]
        for member, weights in enum.__members__.items()
    }


def _find(name: str) -> tuple[str, Any]:
    """Return the builder's name and the weights."""
    known = known_weights()
    if name.startswith(KeypointRCNN.__name__):
        raise keypoints_refused(name)
    if name not in known:
        hint = suggest(name, known, f"expected one of {', '.join(known)}")
        raise DfmsdError(f"unknown torchvision detector weights {name!r}: {hint}")
    return known[name]
