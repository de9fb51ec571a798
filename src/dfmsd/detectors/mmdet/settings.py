"""The ``model`` section of an MMDetection config as plain data."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from dfmsd.errors import DfmsdError

Settings = dict[str, Any]
"""The ``model`` section of a config, in Python's built-in types."""
MASK_PARTS = ("mask_head", "mask_roi_extractor")
"""Keys that make a region head predict masks too."""
PIXEL_KEYS = ("type", "mean", "std", "bgr_to_rgb")
"""Keys of the preprocessor that are kept; its padding and batch augmentation are not."""
TRAINABLE_BACKBONE = {"frozen_stages": -1, "norm_eval": False}
"""Values for a backbone with random weights, for the keys that it has: it has no trained statistics to keep."""
REGISTERED = r"((mmdet|mmcv|mmengine)\.)?\w+"
"""Name of a registered class of the library: one word, optionally after the package that registered it."""


def read_settings(config: Any, text: str) -> Settings:
    """Return a config's model settings, without its mask branch and links to weights.

    Args:
        config: Config of the library.
        text: Reference of the config, for messages.

    Raises:
        DfmsdError: It does not describe a detector with a backbone, or has values that a file cannot hold.
    """
    settings = _plain(config.get("model"))
    if not isinstance(settings, dict) or not isinstance(settings.get("backbone"), dict):
        raise DfmsdError(f"{text}: the config has no model with a backbone: pass the config of a plain detector")
    for owner in (settings, settings["backbone"]):
        owner.pop("pretrained", None)
        owner["init_cfg"] = None
    preprocessor = settings.get("data_preprocessor") or {}
    settings["data_preprocessor"] = {key: preprocessor[key] for key in PIXEL_KEYS if key in preprocessor}
    for part in MASK_PARTS:
        (settings.get("roi_head") or {}).pop(part, None)
    return parse(write(settings), text)


def with_classes(settings: Settings, number: int) -> Settings:
    """Copy settings with another number of classes in all heads."""
    copied = copy.deepcopy(settings)
    for heads in (copied.get("bbox_head"), (copied.get("roi_head") or {}).get("bbox_head")):
        for head in heads if isinstance(heads, list) else [heads]:
            if head is not None:
                head["num_classes"] = number
                _set_classes(head, number)
    return copied


def with_trainable_backbone(settings: Settings) -> Settings:
    """Copy settings with no frozen layers and statistics in the backbone."""
    copied = copy.deepcopy(settings)
    backbone = copied["backbone"]
    backbone.update({key: value for key, value in TRAINABLE_BACKBONE.items() if key in backbone})
    if isinstance(backbone.get("norm_cfg"), dict):
        backbone["norm_cfg"]["requires_grad"] = True
    return copied


def write(settings: Settings) -> str:
    """Write settings as a Python literal, since the library distinguishes tuples from lists and JSON does not."""
    return repr(settings)


def parse(literal: str, text: str) -> Settings:
    """Parse the output of `write` without running code; it can only name registered classes of the library.

    Args:
        literal: The settings.
        text: What they belong to, for messages.

    Raises:
        DfmsdError: It is not such a literal.
    """
    try:
        settings = ast.literal_eval(literal)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise DfmsdError(f"{text}: its mmdet settings are not plain values that a file can hold ({error})") from error
    for name in _types(settings):
        if not re.fullmatch(REGISTERED, name):
            raise DfmsdError(f"{text}: its mmdet settings name {name!r}, which is not registered in mmdet")
    return dict(settings)


def classes_of(config: Any) -> tuple[str, ...]:
    """Find class names in a config, in its data sets or in their classes; empty if there are none."""
    datasets = [
        _innermost((config.get(f"{part}_dataloader") or {}).get("dataset")) for part in ("train", "val", "test")
    ]
    stated = (class_names((owner.get("metainfo") or {}).get("classes")) for owner in (config, *datasets))
    return next(filter(None, stated), ()) or next(filter(None, map(_classes_of_type, datasets)), ())


def _innermost(dataset: Any) -> Mapping[str, Any]:
    """Unwrap data sets that repeat or rebalance another one."""
    while dataset and "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset or {}


def _classes_of_type(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    kind = dataset.get("type")
    if isinstance(kind, str):
        registry = import_module("mmdet.registry").DATASETS
        registry.import_from_location()
        kind = registry.module_dict.get(kind.removeprefix("mmdet."))
    return class_names(getattr(kind, "METAINFO", {}).get("classes"))


def class_names(classes: Any) -> tuple[str, ...]:
    """Return class names as a tuple; the library accepts a list, a single name, or nothing."""
    return (classes,) if isinstance(classes, str) else tuple(classes or ())


def _plain(value: Any) -> Any:
    """Convert settings to Python's built-in types; a class becomes its registered name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return getattr(value, "__name__", value)


def _types(value: Any) -> Iterator[str]:
    """Yield the names of the classes that settings build."""
    if isinstance(value, dict):
        if "type" in value:
            yield str(value["type"])
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _types(item)


def _set_classes(value: Any, number: int) -> None:
    """Set the number of classes wherever a head states it, such as in its losses."""
    if isinstance(value, dict):
        if "num_classes" in value:
            value["num_classes"] = number
        for item in value.values():
            _set_classes(item, number)
