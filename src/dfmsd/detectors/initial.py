"""Detectors for the classes of a data set, from their first weights on: random, of a backbone, or of a detector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from dfmsd.detectors.base import Detector
from dfmsd.detectors.checkpoints import load_detector, restore_detector, unknown_reference
from dfmsd.detectors.classnames import Names, with_names
from dfmsd.detectors.config import OWN_ARCHS, PYTHON, DetectorConfig, is_weights_name, read_detector_config
from dfmsd.detectors.description import describe, described_config, find_files, read_description
from dfmsd.detectors.frameworks import FRAMEWORKS, TORCHVISION
from dfmsd.detectors.registry import build_new
from dfmsd.detectors.timm_backbone import TIMM
from dfmsd.detectors.torchvision.files import Reference
from dfmsd.detectors.torchvision.pretrained import arch_of_weights
from dfmsd.detectors.transfer import keep_weights
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import check_path

logger = logging.getLogger("dfmsd")
ARCHITECTURE = ("arch", "backbone", "fpn_channels", "head_convs", "anchor_scale")
"""Fields of `DetectorConfig` that the weights depend on."""


def build_detector(config: DetectorConfig | str, class_names: Sequence[str], renamed: Names | None = None) -> Detector:
    """Build a detector for the classes of a data set, in train mode; its heads are untrained without ``init``.

    Args:
        config: Architecture and initial weights, or a name such as ``fcos`` or ``fcos/resnet18``.
        class_names: Label ``i`` is ``class_names[i]``.
        renamed: Class name of the detector that it starts from -> name in ``class_names``, where they differ by more
            than `common_classes` knows.

    Raises:
        DfmsdError: The configuration cannot be built; the message names the key.
    """
    config = adopt_architecture(read_detector_config(config))
    if config.init is None:
        return build_new(config, class_names, renamed)
    trained = with_names(load_detector(config.init), renamed)
    if trained.config is None:  # torchvision's own, whose batch normalization is frozen
        student = build_new(replace(config, init=None), class_names)
    else:
        student = restore_detector(config, {**describe(trained, config), "class_names": list(class_names)})
    student.config = config
    name = f"{config.arch}/{config.backbone}" if config.arch in OWN_ARCHS else config.arch
    logger.info("%s: %s", name, keep_weights(student, trained, config.init))
    return student


def adopt_architecture(config: DetectorConfig) -> DetectorConfig:
    """Complete a config with the architecture of the detector that it starts from; its weights are not read.

    Args:
        config: ``arch`` and ``backbone`` must be ``auto`` or those of the detector, and the other keys of the
            architecture their defaults or those of the detector.

    Returns:
        The config, with ``pretrained`` in place of ``init`` for a detector of another library.

    Raises:
        DfmsdError: There is no such detector, or it has another architecture.
    """
    if config.init is None:
        return config
    found = _config_of(config.init)
    # `auto` where these are left out; the numbers have no such value, so their defaults count as left out
    defaults = {field.name: field.default for field in fields(config)}
    given = [key for key in ARCHITECTURE if getattr(config, key) != defaults[key]]
    differing = [key for key in given if getattr(config, key) != getattr(found, key)]
    if differing:
        of_student, of_found = (", ".join(f"{key} {getattr(one, key)}" for key in differing) for one in (config, found))
        raise DfmsdError(
            f"{config.init} has {of_found}, the student {of_student}; weights fit their own architecture only:"
            " leave these keys out, or start from another detector"
        )
    adopted = {key: getattr(found, key) for key in ARCHITECTURE}
    if found.pretrained is True:
        adopted |= {"pretrained": True, "init": None}
    return replace(config, **adopted)


def _config_of(reference: str) -> DetectorConfig:
    """Return the config of a detector without reading its weights; with ``pretrained`` for one of another library."""
    if reference.startswith(tuple(FRAMEWORKS)):
        return DetectorConfig(reference, pretrained=True)
    if is_weights_name(reference):
        return DetectorConfig(arch_of_weights(reference))
    if reference.startswith(TORCHVISION):
        return DetectorConfig(Reference.parse(reference).arch)
    if reference.startswith(TIMM):
        raise DfmsdError(f"{reference} has no detection head; name it as backbone, with pretrained: true")
    check_path("init", reference)
    if not Path(reference).exists():
        raise unknown_reference(reference)
    file = find_files(Path(reference)).description
    config = described_config(read_description(file), file)
    if config.arch.startswith(PYTHON):
        raise DfmsdError(
            f"{reference} holds a module that only its own program can build, {config.arch}; pass it there, as a"
            " ModuleDetector with these weights"
        )
    return replace(config, pretrained=False, init=None)
