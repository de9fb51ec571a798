"""An index of each large split: its validated content in one file, which later processes map into memory.

It is used while neither the annotations nor an image file has changed. The pages of a map are shared by all processes
that read the split: those of a distributed run, and loader workers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dfmsd.data.formats.layout import Source
from dfmsd.data.records import Columns, Records
from dfmsd.data.shards import file_stamp
from dfmsd.data.truth import GroundTruth
from dfmsd.utils.cachedir import GIB, cache_root, make_room, open_folder
from dfmsd.utils.files import write_tensors
from dfmsd.utils.threads import map_in_threads

VERSION = 2
"""Of the content; a change of the readers raises it."""
BUDGET = 4 * GIB
"""Of all indexes."""
NAME = "split.safetensors"


class SplitContent(NamedTuple):
    """What opening a split reads."""

    class_names: list[str]
    category_ids: list[int]
    listed: bool
    """Whether the format lists the classes."""
    warnings: list[str]
    """Logged while the split was read."""
    records: Records
    truth: GroundTruth


def load_index(source: Source, fingerprint: str) -> SplitContent | None:
    """Return the content of a split if it has an index that is still true, else None.

    Args:
        source: The split.
        fingerprint: Of its annotations, see `Source`.
    """
    try:
        stored = load_file(_folder(source) / NAME)
        about = json.loads(stored.pop("about").numpy().tobytes())
        if about.pop("key") != _key(fingerprint):
            return None
        records = Records(Columns._make(_arrays(stored, "records", Columns._fields)))
        if not np.array_equal(_stamps(records), stored["stamps"].numpy()):
            return None
        truth = GroundTruth._make(_arrays(stored, "truth", GroundTruth._fields))
        return SplitContent(**about, records=records, truth=truth)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):  # none, of another version, or damaged
        return None


def save_index(source: Source, fingerprint: str, content: SplitContent) -> None:
    """Write the index of a split, unless the disk is full or cannot be written to.

    Args:
        source: The split.
        fingerprint: Of its annotations before they were read.
        content: To write.
    """
    about = {name: value for name, value in content._asdict().items() if name not in ("records", "truth")}
    columns = {f"records.{name}": column for name, column in content.records.columns._asdict().items()}
    columns |= {f"truth.{name}": column for name, column in content.truth._asdict().items()}
    encoded = json.dumps({"key": _key(fingerprint), **about}).encode()
    arrays = {**columns, "stamps": _stamps(content.records), "about": np.frombuffer(encoded, np.uint8)}
    need, folder = sum(array.nbytes for array in arrays.values()), _folder(source)
    try:
        if make_room(folder.parent, {folder.name}, need, BUDGET) >= need:
            with open_folder(folder) or open(os.devnull):
                write_tensors(folder / NAME, {name: _to_tensor(array) for name, array in arrays.items()})
    except OSError:
        return


def _folder(source: Source) -> Path:
    name = hashlib.blake2b(os.fsencode(source.file.absolute()), digest_size=16).hexdigest()
    return cache_root() / "index" / name


def _key(fingerprint: str) -> str:
    return f"{VERSION} {fingerprint}"


def _stamps(records: Records) -> NDArray[np.int64]:
    """Return time and size of every image file."""
    paths = [os.fsdecode(path) for path in records.columns.paths.tolist()]
    return np.array(map_in_threads(file_stamp, paths), np.int64)


def _to_tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype.kind == "S":  # a byte per column
        array = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), array.dtype.itemsize)
    return torch.tensor(array)


def _arrays(stored: dict[str, Tensor], prefix: str, names: Sequence[str]) -> list[NDArray[Any]]:
    arrays = {name: stored[f"{prefix}.{name}"].numpy() for name in names}
    if "paths" in arrays:
        arrays["paths"] = arrays["paths"].view(f"S{arrays['paths'].shape[1]}").reshape(-1)
    return list(arrays.values())
