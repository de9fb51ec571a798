"""Vision backbones of Hugging Face transformers as teachers without a detection head."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from dfmsd.detectors.base import Detector
from dfmsd.detectors.headless import BackboneTeacher, SingleScalePyramid, convert_errors
from dfmsd.detectors.huggingface.detector import normalization, processor_settings
from dfmsd.detectors.huggingface.files import load_transformers, load_weights, read_config, read_processor_settings
from dfmsd.detectors.levels import dry_run
from dfmsd.detectors.normalize import Normalize

PATCH_SIDE = 224
"""Side of the dry run that finds the strides: a multiple of 14, 16 and 32."""
STAGE_NORMS = ("hidden_states_norms.",)
"""Layers that transformers adds after each stage of a backbone. A classifier's file lacks them; they start as plain
normalizations, without randomness."""


class FeatureMaps(nn.Module):
    """The feature maps of a transformers backbone.

    Args:
        body: A model of the library's ``AutoBackbone``.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        return list(self.body(pixel_values=pixels).feature_maps)


def load(reference: str, *, trained: bool = True) -> Detector:
    """Load a detector, or a backbone as a teacher without a head, in eval mode.

    Args:
        reference: ``hf:`` and a folder or the id of a model on the hub.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: A file is missing, or the model is not supported.
    """
    config = read_config(reference)
    if backbone_class(config) is None:
        return load_transformers(reference, config, trained=trained)
    return load_backbone_teacher(reference, config, trained=trained)


def backbone_class(config: Any) -> Any:
    """Return the library's backbone class for the model that a config describes; None where it has none."""
    # not AutoBackbone itself, which asks the hub about a local folder
    return import_module("transformers").MODEL_FOR_BACKBONE_MAPPING.get(type(config), None)


def load_backbone_teacher(reference: str, config: Any, *, trained: bool = True) -> BackboneTeacher:
    """Load a backbone, in eval mode.

    Args:
        reference: ``hf:`` and a folder or the id of a model on the hub, which may have a classifier.
        config: The config that was read there, see `backbone_class`.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: A file is missing or does not fit, or the model has no feature maps of images of any size.
    """
    config = copy.deepcopy(config)
    config.out_features = config.stage_names[1:]  # the first one is the stem
    kind = backbone_class(config)
    body = load_weights(reference, config, kind, STAGE_NORMS) if trained else kind(config)
    settings = read_processor_settings(reference, required=trained)
    with convert_errors(reference):
        mean, std = normalization({**_default_settings(), **settings})
        maps: nn.Module = FeatureMaps(body)
        strides = {PATCH_SIDE // value.shape[-1] for value in dry_run(maps, PATCH_SIDE)}
        if len(strides) == 1:
            body.out_features = body.out_features[-1:]
            maps = SingleScalePyramid(maps, *strides)
        return BackboneTeacher(maps, Normalize(mean.flatten().tolist(), std.flatten().tolist()), reference).eval()


def _default_settings() -> dict[str, Any]:
    """Return the defaults of the library's image processors, with ImageNet's statistics."""
    return processor_settings(import_module("transformers").ConvNextImageProcessor())
