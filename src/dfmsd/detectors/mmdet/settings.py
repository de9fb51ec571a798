"""The ``model`` of an MMDetection config as plain data: what dfmsd changes in it, and how a saved student keeps it."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from dfmsd.errors import DfmsdError

Settings = dict[str, Any]
"""The ``model`` of a config, in Python's own types."""
MASK_PARTS = ("mask_head", "mask_roi_extractor")
"""Keys of a head on regions that make it predict masks too."""
PIXEL_KEYS = ("type", "mean", "std", "bgr_to_rgb")
"""What is kept of the preprocessor; its padding and its augmentation of batches are not."""
TRAINABLE_BACKBONE = {"frozen_stages": -1, "norm_eval": False}
"""What a backbone with random weights needs, of the keys that it has: its statistics would be nobody's."""
REGISTERED = r"((mmdet|mmcv|mmengine)\.)?\w+"
"""How the library calls its parts: by one word, before it perhaps the package that has registered it."""


def read_settings(config: Any, text: str) -> Settings:
    """Take a detector's settings out of a config, for boxes alone and without weights from elsewhere.

    Args:
        config: the library's.
        text: its reference, for messages.

    Raises:
        DfmsdError: it describes no detector with a backbone of its own, or holds what no file can.
    """
    settings = _plain(config.get("model"))
    if not isinstance(settings, dict) or not isinstance(settings.get("backbone"), dict):
        raise DfmsdError(f"{text}: the config has no model with a backbone: give the config of a plain detector")
    for owner in (settings, settings["backbone"]):
        owner.pop("pretrained", None)
        owner["init_cfg"] = None
    told = settings.get("data_preprocessor") or {}
    settings["data_preprocessor"] = {key: told[key] for key in PIXEL_KEYS if key in told}
    for part in MASK_PARTS:
        (settings.get("roi_head") or {}).pop(part, None)
    return parse(write(settings), text)


def with_classes(settings: Settings, number: int) -> Settings:
    """Give settings whose heads know so many classes."""
    own = copy.deepcopy(settings)
    for heads in (own.get("bbox_head"), (own.get("roi_head") or {}).get("bbox_head")):
        for head in heads if isinstance(heads, list) else [heads]:
            if head is not None:
                head["num_classes"] = number
                _set_classes(head, number)
    return own


def with_trainable_backbone(settings: Settings) -> Settings:
    """Give settings whose backbone has no frozen layers and no frozen statistics."""
    own = copy.deepcopy(settings)
    backbone = own["backbone"]
    backbone.update({key: value for key, value in TRAINABLE_BACKBONE.items() if key in backbone})
    if isinstance(backbone.get("norm_cfg"), dict):
        backbone["norm_cfg"]["requires_grad"] = True
    return own


def write(settings: Settings) -> str:
    """Write settings as a Python literal: the library tells tuples from lists, which JSON does not."""
    return repr(settings)


def parse(literal: str, text: str) -> Settings:
    """Read what `write` gave; no code in it runs, and what it names can only be a registered part of the library.

    Args:
        literal: the settings.
        text: what they belong to, for messages.

    Raises:
        DfmsdError: it is no such literal.
    """
    try:
        settings = ast.literal_eval(literal)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise DfmsdError(f"{text}: its mmdet settings are no plain values that a file can hold ({error})") from error
    for name in _types(settings):
        if not re.fullmatch(REGISTERED, name):
            raise DfmsdError(f"{text}: its mmdet settings name {name!r}, which is not registered in mmdet")
    return dict(settings)


def classes_of(config: Any) -> tuple[str, ...]:
    """Look for class names in a config: its own, those of its data sets, those of their class; empty without any."""
    datasets = [
        _innermost((config.get(f"{part}_dataloader") or {}).get("dataset")) for part in ("train", "val", "test")
    ]
    told = (class_names((one.get("metainfo") or {}).get("classes")) for one in (config, *datasets))
    return next(filter(None, told), ()) or next(filter(None, map(_classes_of_type, datasets)), ())


def _innermost(dataset: Any) -> Mapping[str, Any]:
    """Look into data sets that repeat or rebalance another one."""
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
    """Give names from what the library takes as such: a list, a single name, or nothing."""
    return (classes,) if isinstance(classes, str) else tuple(classes or ())


def _plain(value: Any) -> Any:
    """Give settings in Python's own types; a class stands for its registered name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(part) for part in value)
    return getattr(value, "__name__", value)


def _types(value: Any) -> Iterator[str]:
    """Yield all that settings want to be built."""
    if isinstance(value, dict):
        if "type" in value:
            yield str(value["type"])
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _types(part)


def _set_classes(value: Any, number: int) -> None:
    """Replace the number of classes wherever a head names it: losses may, too."""
    if isinstance(value, dict):
        if "num_classes" in value:
            value["num_classes"] = number
        for part in value.values():
            _set_classes(part, number)
