"""timm backbones as teachers without a detection head."""

from __future__ import annotations

from inspect import signature
from typing import Any

import timm
from torch import Tensor, nn

from dfmsd.detectors.build.backbones import timm_weights, unknown_backbone
from dfmsd.detectors.headless import BackboneTeacher, SingleScalePyramid, convert_errors
from dfmsd.detectors.normalize import Normalize
from dfmsd.detectors.weights import load_backbone

TIMM = "timm:"
"""Prefix of a timm backbone as a teacher."""
WEIGHTS = "?weights="
"""Separates such a reference from a state-dict file."""
FINEST = 4
"""Finest stride that is kept of a pyramid: no student has a finer one."""
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
"""Arguments that let timm's transformers take images of any size."""


class TimmPyramid(nn.Module):
    """The maps of a timm feature extractor, channels first.

    Args:
        body: A model created with ``features_only``.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        return [value.permute(0, 3, 1, 2) if self.channels_last else value for value in self.body(pixels)]


class TimmTokens(nn.Module):
    """The last, normalized map of a plain vision transformer of timm.

    Args:
        body: A model without a classifier.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the map, in a list."""
        maps: list[Tensor] = self.body.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
        return maps


def load_timm(reference: str, *, trained: bool = True) -> BackboneTeacher:
    """Load a timm backbone, in eval mode.

    Args:
        reference: ``timm:<model>`` for its published weights, from an installed package of
            :data:`~dfmsd.detectors.weights.PIP_WEIGHTS` or the hub; ``timm:<model>?weights=<file>`` for a state dict.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: The model is unknown, its weights are unavailable, or it has no feature maps of images of any size.
    """
    name, separator, file = reference.removeprefix(TIMM).partition(WEIGHTS)
    if not timm.is_model(name):
        raise unknown_backbone(name)
    with convert_errors(reference):
        body, model = _timm_model(name)
    if trained:
        remedy = f"give the file's path, {TIMM}{name}{WEIGHTS}FILE"
        classifier, state = timm_weights(name, file if separator else True, remedy)
        load_backbone(body, state, classifier, reference)
    with convert_errors(reference):
        normalize = Normalize(body.pretrained_cfg["mean"], body.pretrained_cfg["std"])
        return BackboneTeacher(model, normalize, reference).eval()


def _timm_model(name: str) -> tuple[Any, nn.Module]:
    """Create the timm model, and the module around it that returns maps."""
    parameters = signature(type(timm.create_model(name))).parameters
    options: dict[str, Any] = {key: value for key, value in ANY_SIZE.items() if key in parameters}
    info: Any = timm.create_model(name, features_only=True, **options).feature_info
    strides = dict(zip(info.out_indices, info.reduction(), strict=True))
    if len(set(strides.values())) == 1:
        body: Any = timm.create_model(name, num_classes=0, **options)
        return body, SingleScalePyramid(TimmTokens(body), info.reduction()[-1])
    coarse = tuple(index for index, stride in strides.items() if stride >= FINEST)
    body = timm.create_model(name, features_only=True, out_indices=coarse, **options)
    return body, TimmPyramid(body)
