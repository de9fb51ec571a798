"""Building detectors from a configuration, whatever their family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from dfmsd.detectors.base import Detector
from dfmsd.detectors.build.builders import build_faster_rcnn, build_fcos, build_gfl, build_retinanet, build_ssdlite
from dfmsd.detectors.classnames import Names
from dfmsd.detectors.config import PYTHON, DetectorConfig
from dfmsd.detectors.frameworks import FRAMEWORKS
from dfmsd.detectors.torchvision.models import TorchvisionModel, build_torchvision
from dfmsd.detectors.torchvision.wrap import wrap_torchvision
from dfmsd.errors import DfmsdError

DETECTORS: dict[str, Callable[[DetectorConfig, int], TorchvisionModel]] = {
    "fcos": build_fcos,
    "retinanet": build_retinanet,
    "gfl": build_gfl,
    "faster_rcnn": build_faster_rcnn,
    "ssdlite": build_ssdlite,
}
"""``arch`` -> builder of the plain model; torchvision's own detectors, `torchvision_archs`, are not listed."""


class Adapter(Protocol):
    """Functions that the package of a framework exports."""

    def load(self, reference: str, *, trained: bool = True) -> Detector:
        """Load a detector with its own classes, in eval mode; ``trained=False`` leaves the weights random."""

    def build(self, config: DetectorConfig, class_names: Sequence[str], renamed: Names | None = None) -> Detector:
        """Build a student for the classes of a data set, in train mode; ``renamed`` as in `build_detector`."""

    def restore(self, config: DetectorConfig, description: dict[str, Any]) -> Detector:
        """Rebuild a saved student, with random weights, from its description."""


def find_adapter(reference: str) -> Adapter | None:
    """Return the adapter of the framework that a reference or ``arch`` names; None for one without its prefix."""
    for prefix, framework in FRAMEWORKS.items():
        if reference.startswith(prefix):
            return cast(Adapter, import_module(framework.package))
    return None


def build_new(config: DetectorConfig, class_names: Sequence[str], renamed: Names | None = None) -> Detector:
    """Build a detector with untrained heads, in train mode; another library's may keep those of its own classes.

    Args:
        config: Architecture and initial weights, without ``init``.
        class_names: Label ``i`` is ``class_names[i]``.
        renamed: As in `build_detector`, for another library's weights.

    Raises:
        DfmsdError: The configuration cannot be built; the message names the key.
    """
    if not class_names:
        raise DfmsdError("a detector needs at least one class name: check `categories` of the annotation file")
    adapter = find_adapter(config.arch)
    if adapter is not None:
        return adapter.build(config, class_names, renamed)
    if config.arch.startswith(PYTHON):
        raise DfmsdError(
            f"arch: {config.arch} is a module of another program, which a config cannot build; pass it in Python, as a "
            "ModuleDetector, to dfmsd.distill(student=...)"
        )
    detector = wrap_torchvision(build_model(config, len(class_names)), class_names)
    detector.config = config
    return detector


def build_model(config: DetectorConfig, num_classes: int) -> TorchvisionModel:
    """Build the plain torchvision model of one of dfmsd's or torchvision's architectures.

    Args:
        config: Architecture and initial weights.
        num_classes: Number of classes, without the background.

    Raises:
        DfmsdError: The configuration cannot be built; the message names the key.
    """
    return DETECTORS.get(config.arch, build_torchvision)(config, num_classes)


def check_frozen(config: DetectorConfig) -> None:
    """Refuse to train a detector whose frozen layers would stay random.

    Raises:
        DfmsdError: It has frozen layers and no pretrained weights.
    """
    if config.frozen_stride and config.pretrained is False and config.init is None:
        raise DfmsdError(
            f"frozen_stride: {config.frozen_stride} would keep random weights; set pretrained or init, or frozen_stride"
            " to 0"
        )
