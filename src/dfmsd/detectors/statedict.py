"""State dicts: reading files, wrappers' prefixes, and strict loading."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.utils.files import check_path

StateDict = dict[str, Tensor]

COMPILED = "_orig_mod."
"""Part that ``torch.compile`` adds to the keys of a module."""
WRAPPERS = ("module.", "model.")
"""Prefixes of all keys, of ``DistributedDataParallel`` and of Lightning modules."""
NESTED = ("state_dict", "model", "model_state_dict")
"""Keys of the state dict in the checkpoint of a training."""
EXTRA_STATE = "_extra_state"
"""End of the keys under which modules save what is no tensor, which no detector has."""
COUNTER = "num_batches_tracked"
"""End of the keys of buffers that frozen batch normalization lacks."""
HARMLESS: list[Any] = [Namespace, np.dtype, np.float64(0).__reduce__()[0], *(type(np.dtype(kind)) for kind in "fdil")]
"""Classes of what trainings save besides weights: arguments, as torchvision's script, and metrics as NumPy numbers."""
LISTED = 3
"""Keys that a message names."""


def read_state_dict(path: str | Path) -> StateDict:
    """Read a state dict from a ``.safetensors`` file or a ``torch.save`` file, never executing pickled code.

    Of a training's checkpoint, the entry ``state_dict``, ``model`` or ``model_state_dict`` is read.

    Raises:
        DfmsdError: The file is missing or contains no named tensors.
    """
    check_path("weights file", str(path))
    path = Path(path)
    if not path.is_file():
        raise DfmsdError(f"weights file {path} does not exist: check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of damaged files raise any kind of exception
        code = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
        # PyTorch goes on to explain how to run the code in the file
        reason = f"it holds a {code[1]}" if code else foreign_message(error).partition(". ")[0]
        raise DfmsdError(
            f"{path} is not a checkpoint that can be read safely ({reason}): pass a .safetensors file, or a state dict"
            " of tensors alone saved with torch.save"
        ) from error
    found = next((state for state in map(_without_extra, _candidates(content)) if _is_state_dict(state)), None)
    if found is None:
        keys = shorten(list(map(str, content))) if isinstance(content, Mapping) else ""
        held = f"its keys are {keys}" if keys else f"it holds a {type(content).__name__}"
        raise DfmsdError(
            f"{path} is not a checkpoint: expected parameter name -> tensor, flat or under {', '.join(NESTED)}; {held}"
        )
    return dict(found)


def _candidates(content: Any) -> list[Any]:
    return [content, *(content.get(key) for key in NESTED)] if isinstance(content, Mapping) else []


def _without_extra(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: entry for key, entry in value.items() if not str(key).endswith(EXTRA_STATE)}


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(tensor, Tensor) for tensor in value.values())


def without_wrappers(state: StateDict, is_known: Callable[[str], bool]) -> StateDict:
    """Remove what ``torch.compile``, data parallelism or a training's module have put before every key.

    Args:
        state: Parameters by name.
        is_known: Whether the model has a key; nothing is removed from those that it has.
    """
    state = {key if is_known(key) else key.replace(COMPILED, ""): value for key, value in state.items()}
    while state and not any(map(is_known, state)):
        prefix = next((prefix for prefix in WRAPPERS if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def find_model(state: StateDict, keys: Collection[str], source: Path | str, kind: str) -> StateDict:
    """Return a model's entries in the state dict of a training, in which it is one of several parts.

    Args:
        state: Parameters by name, all those of the model under one prefix, such as ``detector.``.
        keys: Names in the model; counters of batches may be missing.
        source: Source of the weights, for messages.
        kind: What the model is, for messages.

    Raises:
        DfmsdError: The model is not there, or more than once.
    """
    state = {key.replace(COMPILED, ""): value for key, value in state.items()}
    needed = [key for key in keys if not key.endswith(COUNTER)]
    starts = {key.removesuffix(needed[0]) for key in state if key.endswith(needed[0])}
    prefixes = sorted(start for start in starts if all(start + key in state for key in needed))
    if not prefixes:
        missing = next(key for key in needed if key not in state)
        raise DfmsdError(f"{source} has no {missing}, a weight of {kind}; its keys are {shorten([*state])}")
    if len(prefixes) > 1:
        raise DfmsdError(
            f"{source} holds the model {len(prefixes)} times, under {', '.join(map(repr, prefixes))}; save one of them"
            " alone"
        )
    start = prefixes[0]
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def load_strictly(model: nn.Module, state: StateDict, source: Path | str) -> None:
    """Load a complete state dict, whose keys may have a wrapper's prefix.

    Args:
        model: The model.
        state: Parameters by name.
        source: Source of the weights, for messages.

    Raises:
        DfmsdError: A key is missing, unexpected, or has another shape, or a value is not finite.
    """
    load_whole(model, without_wrappers(state, model.state_dict().__contains__), source, "model")


def load_whole(
    model: nn.Module, state: StateDict, source: Path | str, kind: str, unexpected: Sequence[str] = ()
) -> None:
    """Load a state dict that has every key of a model, and no other one.

    Args:
        model: The model.
        state: Parameters by name.
        source: Source of the weights, for messages.
        kind: What the model is, for messages, such as ``backbone``.
        unexpected: Keys without a place that the source has besides.

    Raises:
        DfmsdError: A key is missing, unexpected, or has another shape, or a value is not finite.
    """
    problem = f"{source} does not fit the {kind}"
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        heading, *lines = [" ".join(line.split()) for line in str(error).splitlines()]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise DfmsdError(f"{problem}: {(lines or [heading])[0].rstrip('.')}{more}") from error
    unknown = [*unexpected, *result.unexpected_keys]
    if result.missing_keys or unknown:
        raise DfmsdError(
            f"{problem}: missing {shorten(result.missing_keys)}; unexpected {shorten(unknown)}; pass the weights of"
            f" exactly this {kind}"
        )
    check_finite(model, source)


def check_finite(model: nn.Module, source: Path | str) -> None:
    """Refuse weights with NaN or infinite values; buffers may hold the negative infinity of attention masks.

    Args:
        model: The model.
        source: Source of the weights, for the message.

    Raises:
        DfmsdError: Names the first key with such a value.
    """
    learned = {name for name, _ in model.named_parameters()}
    state = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    bad = [key for key, value in state.items() if not _is_finite(value, masked=key not in learned)]
    if bad:
        raise DfmsdError(
            f"{source} has values that are NaN or infinite in {len(bad)} of {len(state)} tensors, the first is"
            f" {bad[0]}: its training diverged or the file is damaged; use another checkpoint"
        )


def _is_finite(value: Tensor, *, masked: bool) -> bool:
    if not value.is_floating_point():
        return True
    value = value.float() if value.element_size() == 1 else value  # kernels for 8 bits are missing
    return bool((value.isfinite() | (value.isneginf() if masked else False)).all())


def shorten(keys: Sequence[str]) -> str:
    """Return the number of keys and the first of them."""
    more = ", ..." if len(keys) > LISTED else ""
    return f"{len(keys)} ({', '.join(keys[:LISTED])}{more})" if keys else "none"
