"""Teachers without a detection head: backbones of timm and of Hugging Face transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import Any, NoReturn

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd.detectors.base import Detector
from dfmsd.detectors.build.backbones import dry_run, timm_weights, unknown_backbone
from dfmsd.detectors.huggingface.detector import check_size, normalization, pixels_of
from dfmsd.detectors.huggingface.files import load_weights, read_pixels
from dfmsd.detectors.normalize import Pixels
from dfmsd.detectors.torchvision.base import Maps, read_levels
from dfmsd.detectors.weights import load_backbone, to_library_keys
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.types import Detections, FeaturePyramid, Target

TIMM = "timm:"
"""What the name of a timm backbone begins with, as a teacher."""
WEIGHTS = "?weights="
"""What stands between such a name and a state-dict file."""
STRIDES = (8, 16, 32)
"""Of the levels that are made of a map of one stride: those that all students but SSD have."""
FINEST = 4
"""Finest stride that is kept of a pyramid: no student has a finer one."""
PATCH_SIDE = 224
"""Side of a dry run that tells strides: a multiple of 14, 16 and 32."""
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
"""Arguments of timm's transformers that let them take images of any size."""
FRESH_NORMS = ("hidden_states_norms.",)
"""Layers that transformers puts behind each stage of a backbone. A classifier's file lacks them; they start as plain
normalisations, without randomness."""


class BackboneTeacher(Detector):
    """A backbone that teaches by its features: it knows no classes, gives no boxes and cannot learn here.

    Args:
        model: normalised pixels -> maps ``N x C x H x W``, finest first.
        pixels: normalises the images.
        name: for messages, the reference that it was loaded from.
    """

    class_names = ()

    def __init__(self, model: nn.Module, pixels: Pixels, name: str) -> None:
        super().__init__()
        self.model = model
        self.pixels = pixels
        self.name = name
        self.levels = read_levels(Maps(self, self._maps))

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the backbone: level name -> ``N x C x H/stride x W/stride``.

        Raises:
            DfmsdError: the sides of the images are no multiples of 32.
        """
        check_size(images)
        return {level.name: value for level, value in zip(self.levels, self._maps(images), strict=True)}

    def forward(self, images: Tensor, targets: Sequence[Target]) -> NoReturn:
        """Refuse: there is no head to learn.

        Raises:
            DfmsdError: always.
        """
        raise DfmsdError(f"{self.name} has no detection head: it can only teach, by its features")

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Refuse: there is no head to detect with.

        Raises:
            DfmsdError: always.
        """
        raise DfmsdError(f"{self.name} has no detection head: it gives features, and no boxes to look at or to score")

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.model(self.pixels(images))
        return maps


class OneStride(nn.Module):
    r"""Make a pyramid of `STRIDES` from the single map of a plain vision transformer.

    A patch of $p$ pixels counts as $s = 2^{\mathrm{round}(\log_2 p)}$, so that its map lies on the cells of stride $s$:
    images are resized by $p / s$ first, bilinearly (by 14/16 for DINOv2's patches). The levels are averages over
    $2 \times 2$ or more cells where they are coarser than $s$, and bilinear interpolations where they are finer: these
    hold nothing that the map does not.

    Args:
        body: pixels -> maps, of which the last is taken.
        patch: its stride in pixels.
    """

    def __init__(self, body: nn.Module, patch: int) -> None:
        super().__init__()
        self.body = body
        self.patch = patch
        self.stride = 2 ** round(math.log2(patch))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Take ``N x 3 x H x W``, with sides that are multiples of 32."""
        if self.patch != self.stride:
            size = [side * self.patch // self.stride for side in pixels.shape[-2:]]
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        value = self.body(pixels)[-1]
        return [_resample(value, self.stride, stride) for stride in STRIDES]


class TimmPyramid(nn.Module):
    """The maps of a timm feature extractor, channels first.

    Args:
        body: made with ``features_only``.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Give the maps, finest first."""
        return [value.permute(0, 3, 1, 2) if self.channels_last else value for value in self.body(pixels)]


class TimmTokens(nn.Module):
    """The last, normalised map of a plain vision transformer of timm.

    Args:
        body: without a classifier.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Give one map."""
        maps: list[Tensor] = self.body.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
        return maps


class TransformersMaps(nn.Module):
    """The maps of a backbone of transformers.

    Args:
        body: of the library's ``AutoBackbone``.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Give the maps, finest first."""
        return list(self.body(pixel_values=pixels).feature_maps)


def load_timm(reference: str, *, trained: bool = True) -> BackboneTeacher:
    """Load a backbone of timm, in eval mode.

    Args:
        reference: ``timm:<model>`` for its published weights, from an installed package of
            :data:`~dfmsd.detectors.weights.PIP_WEIGHTS` or the hub; ``timm:<model>?weights=<file>`` for a state dict.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: there is no such model, its weights are out of reach, or it gives no maps of images of any size.
    """
    name, given, file = reference.removeprefix(TIMM).partition(WEIGHTS)
    if not timm.is_model(name):
        raise unknown_backbone(name)
    with _one_line(reference):
        body, model = _timm_model(name)
    if trained:
        remedy = f"give the file's path, {TIMM}{name}{WEIGHTS}FILE"
        classifier, state = timm_weights(name, file if given else True, remedy)
        load_backbone(body, to_library_keys(state, classifier), classifier, reference)
    with _one_line(reference):
        pixels = Pixels(body.pretrained_cfg["mean"], body.pretrained_cfg["std"])
        return BackboneTeacher(model, pixels, reference).eval()


def backbone_class(config: Any) -> Any:
    """Give the library's class of backbones for the model that a config describes; None where there is none."""
    # not AutoBackbone itself, whose loading asks the hub about a local folder
    return import_module("transformers").MODEL_FOR_BACKBONE_MAPPING.get(type(config), None)


def load_transformers_backbone(reference: str, config: Any, *, trained: bool = True) -> BackboneTeacher:
    """Load a backbone of Hugging Face transformers, in eval mode.

    Args:
        reference: ``hf:`` and a folder or the id of a model on the hub, which may have a classifier.
        config: that was read there, see `backbone_class`.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: a file is missing or does not fit, or the model gives no maps of images of any size.
    """
    config.out_features = config.stage_names[1:]  # the first one is the stem
    kind = backbone_class(config)
    body = load_weights(reference, config, kind, FRESH_NORMS) if trained else kind(config)
    found = read_pixels(reference, needed=trained)
    with _one_line(reference):
        mean, std = normalization({**_library_pixels(), **found})
        maps: nn.Module = TransformersMaps(body)
        strides = {PATCH_SIDE // value.shape[-1] for value in dry_run(maps, PATCH_SIDE)}
        if len(strides) == 1:
            body.out_features = body.out_features[-1:]
            maps = OneStride(maps, *strides)
        return BackboneTeacher(maps, Pixels(mean.flatten().tolist(), std.flatten().tolist()), reference).eval()


def _timm_model(name: str) -> tuple[Any, nn.Module]:
    """Give the timm model, and around it what gives maps."""
    known = signature(type(timm.create_model(name))).parameters
    options: dict[str, Any] = {key: value for key, value in ANY_SIZE.items() if key in known}
    info: Any = timm.create_model(name, features_only=True, **options).feature_info
    strides = dict(zip(info.out_indices, info.reduction(), strict=True))
    if len(set(strides.values())) == 1:
        body: Any = timm.create_model(name, num_classes=0, **options)
        return body, OneStride(TimmTokens(body), info.reduction()[-1])
    coarse = tuple(index for index, stride in strides.items() if stride >= FINEST)
    body = timm.create_model(name, features_only=True, out_indices=coarse, **options)
    return body, TimmPyramid(body)


def _resample(value: Tensor, own: int, wanted: int) -> Tensor:
    """Bring a map from one power of two as its stride to another."""
    if wanted > own:
        return F.avg_pool2d(value, wanted // own)
    if wanted < own:
        return F.interpolate(value, scale_factor=own // wanted, mode="bilinear", align_corners=False)
    return value


def _library_pixels() -> dict[str, Any]:
    """What the library's image processors do unless their file says otherwise, with ImageNet's statistics."""
    return pixels_of(import_module("transformers").ConvNextImageProcessor())


@contextmanager
def _one_line(reference: str) -> Iterator[None]:
    """Put what a foreign model says of a dry run, or of being built for maps, into one line."""
    try:
        yield
    except DfmsdError:
        raise
    except Exception as error:  # foreign models break in any way
        raise DfmsdError(
            f"{reference} gives no feature maps of images of any size ({foreign_message(error)}); choose another "
            "backbone"
        ) from error
