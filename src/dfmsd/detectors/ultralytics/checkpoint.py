"""Reading the library's checkpoints, which are pickles of whole models, without running code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfmsd.detectors.statedict import StateDict
from dfmsd.errors import DfmsdError, foreign_message

EXPECTED = re.compile(
    r"ultralytics\.(nn\.modules\.\w+|nn\.tasks|utils|utils\.loss|utils\.tal)\.\w+|torch\.nn\.modules\.\w+\.\w+"
    r"|pathlib\.\w*Path|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.\w+"
)
"""Full names of the classes in a checkpoint that the library writes."""
DETECTION = "DetectionModel"


class Checkpoint(NamedTuple):
    """What a checkpoint says about its model."""

    state: StateDict
    """The weights, float32."""
    layout: dict[str, Any]
    """Content of the YAML that describes the model."""
    class_names: tuple[str, ...]
    image_size: int | None
    """Longer side of its training images; None if the file does not say."""


class _Recorded:
    """Stands in for every class in the file: it keeps the attributes of an object, and none of its code."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of the library; of a training's, the averaged weights, which the library delivers.

    Every class that the pickle names is replaced by a recorder of attributes, so nothing of the file is executed and
    the version of the library that wrote it hardly matters.

    Raises:
        DfmsdError: The file is damaged, names anything but the library's layers, or holds no detector.
    """
    content = _load(path)
    model = (content.get("ema") or content.get("model")) if isinstance(content, dict) else None
    if not isinstance(model, _Recorded):
        raise DfmsdError(
            f"{path} holds no model of ultralytics: pass a best.pt or last.pt of its training, or a model's YAML and "
            "a state dict, ultralytics:MODEL.yaml,WEIGHTS.pt"
        )
    kind = type(model).__name__
    if kind != DETECTION:
        raise DfmsdError(f"{path} holds a {kind} of ultralytics, not a detector of boxes: choose a {DETECTION}")
    try:
        state = {name: value.float() if value.is_floating_point() else value for name, value in _tensors(model)}
        layout, names = dict(vars(model)["yaml"]), vars(model)["names"]
        class_names = tuple(str(names[label]) for label in range(len(names)))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DfmsdError(f"{path} holds a damaged model ({foreign_message(error)}): use another checkpoint") from error
    arguments = content.get("train_args")
    size = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    return Checkpoint(state, layout, class_names, size if isinstance(size, int) and size % 32 == 0 else None)


def _load(path: Path) -> Any:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        foreign = sorted(name for name in named if not EXPECTED.fullmatch(name))
        if not foreign:
            stand_ins: list[Any] = [(type(name.rpartition(".")[2], (_Recorded,), {}), name) for name in named]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of damaged files raise any kind of exception
        raise DfmsdError(f"{path} cannot be read as a checkpoint ({foreign_message(error)}): copy it again") from error
    raise DfmsdError(
        f"{path} names {', '.join(foreign[:3])}, which is no layer of ultralytics; nothing of it was executed: do not "
        "use the file if you do not know why, and load a state dict with the model's YAML instead"
    )


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Iterate over the state dict of a recorded module."""
    attributes = vars(module)
    own = {**attributes["_parameters"], **attributes["_buffers"]}
    for name, value in own.items():
        if isinstance(value, Tensor) and name not in attributes["_non_persistent_buffers_set"]:
            yield prefix + name, value.detach()
    for name, child in attributes["_modules"].items():
        yield from _tensors(child, f"{prefix}{name}.")
