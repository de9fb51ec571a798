"""Cache of a frozen teacher's features: computed once per image instead of once per epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.types import FeaturePyramid, LevelSpec
from dfmsd.utils.store import Entry, Store

StorageType = Literal["float16", "int8"]

VERSION = 2
"""Incremented whenever the stored form of the same teacher and image changes."""
STEPS = 127
"""Largest int8 used: the scale is symmetric."""


class Layout(NamedTuple):
    """Layout of the entry of one image."""

    levels: tuple[LevelSpec, ...]
    """Only the levels that a loss uses."""
    frame: tuple[int, int]
    """Height and width of the padded input."""
    compute_dtype: torch.dtype = torch.float32
    """Type that the teacher computes in."""
    storage: StorageType = "float16"

    @property
    def nbytes(self) -> int:
        """Bytes per image, with the sides of the maps rounded up."""
        height, width = self.frame
        values = sum(
            level.channels * math.ceil(height / level.stride) * math.ceil(width / level.stride) for level in self.levels
        )
        scales = sum(4 * level.channels for level in self.levels)
        return 2 * values if self.storage == "float16" else values + scales

    def holds(self, entry: Entry) -> bool:
        """Return whether an entry has this layout."""
        return entry.keys() == {name for level in self.levels for name in self._names(level)} and all(
            entry[level.name].dtype == getattr(torch, self.storage)
            and entry[level.name].ndim == 3
            and entry[level.name].shape[-1] == level.channels
            for level in self.levels
        )

    def _names(self, level: LevelSpec) -> tuple[str, ...]:
        return (level.name, f"{level.name}.scale") if self.storage == "int8" else (level.name,)


def namespace(teacher: nn.Module, layout: Layout) -> str:
    """Hash everything that an entry depends on except the image: weights, buffers, architecture and layout."""
    return hash_weights(teacher, f"{VERSION} {type(teacher).__qualname__} {teacher} {layout}")


def hash_weights(module: nn.Module, text: str = "") -> str:
    """Hash the weights and buffers of a module, and a text."""
    content = hashlib.blake2b(text.encode(), digest_size=16)
    # not the state dict, which lacks non-persistent buffers such as the pixels' mean and standard deviation
    for kind in (module.named_parameters(), module.named_buffers()):
        for name, value in kind:
            content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def encode(pyramid: FeaturePyramid, layout: Layout) -> list[Entry]:
    r"""Convert a batch's features to their stored form: one entry per image, each level ``H x W x C``.

    int8 stores $\mathrm{round}(127\, x / m)$ and the scale $m / 127$ with $m = \max_{ij} |x|$ of each channel.

    Raises:
        DfmsdError: a value is not finite, or out of the range of float16.
    """
    batch = len(pyramid[layout.levels[0].name])
    entries: list[Entry] = [{} for _ in range(batch)]
    for level in layout.levels:
        value = pyramid[level.name].float().permute(0, 2, 3, 1)
        stored = _int8(level.name, value) if layout.storage == "int8" else {level.name: value.half()}
        if not all(bool(part.isfinite().all()) for part in stored.values()):
            raise DfmsdError(
                f"teacher_cache: level {level.name} has a value of {float(value.abs().max()):.3g}, which "
                f"{layout.storage} cannot hold; set teacher_cache_dtype to the other type, or leave teacher_cache out"
            )
        for name, parts in stored.items():
            # copies: a view would keep the whole batch in memory
            for entry, part in zip(entries, parts.cpu(), strict=True):
                entry[name] = part.clone(memory_format=torch.contiguous_format)
    return entries


def decode(entries: Sequence[Entry], layout: Layout, device: torch.device | str = "cpu") -> FeaturePyramid:
    """Return the stored features of a batch: float32, ``N x C x H x W`` in channels-last memory."""
    pyramid: FeaturePyramid = {}
    for level in layout.levels:
        value = _batch(entries, level.name, device)
        if layout.storage == "int8":
            value *= _batch(entries, f"{level.name}.scale", device)[:, None, None]
        pyramid[level.name] = value.permute(0, 3, 1, 2)
    return pyramid


class TeacherCache:
    """Stored features of one teacher, where a `FrozenTeacher` looks first.

    Calls always return the stored, rounded form, so that a feature is the same whether it is computed or found. On a
    CPU it does not depend on the other images of the batch either, so that a resumed run recomputes lost features to
    the same bits, in whatever batches.

    Args:
        store: used by this teacher and layout alone, see `namespace`.
        layout: layout of the entries.

    Attributes:
        hits: number of images found so far.
        misses: number of images computed so far.
    """

    def __init__(self, store: Store, layout: Layout) -> None:
        self.store = store
        self.layout = layout
        self.hits = 0
        self.misses = 0

    def __call__(
        self, images: Tensor, keys: Sequence[str | None], compute: Callable[[Tensor], FeaturePyramid]
    ) -> FeaturePyramid:
        """Return the features of a batch.

        Args:
            images: ``N x 3 x H x W``.
            keys: content key of each image; an image with None is neither looked up nor stored.
            compute: the teacher; called with the missing images of the batch, on a CPU one at a time.

        Raises:
            DfmsdError: the size of the images or the compute dtype differ from the layout.
        """
        self._check(images)
        entries = [self._find(key) for key in keys]
        missing = [index for index, entry in enumerate(entries) if entry is None]
        if missing:
            rest = images if len(missing) == len(images) else images[missing]
            for index, entry in zip(missing, self._computed(rest, compute), strict=True):
                entries[index] = entry
                key = keys[index]
                if key is not None:
                    self.store.put(key, entry)
        self.hits += len(images) - len(missing)
        self.misses += len(missing)
        return decode([entry for entry in entries if entry is not None], self.layout, images.device)

    def _computed(self, images: Tensor, compute: Callable[[Tensor], FeaturePyramid]) -> list[Entry]:
        # The order of a kernel's sums depends on the number of images. On a CPU one at a time takes about as long as
        # all at once; on a GPU it would take longer, and sums are not deterministic anyway.
        parts = torch.split(images, 1) if images.device.type == "cpu" else [images]
        return [entry for part in parts for entry in encode(compute(part), self.layout)]

    def _find(self, key: str | None) -> Entry | None:
        entry = None if key is None else self.store.get(key)
        return entry if entry is not None and self.layout.holds(entry) else None

    def _check(self, images: Tensor) -> None:
        kind = images.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
        given = (tuple(images.shape[-2:]), dtype)
        if given != (self.layout.frame, self.layout.compute_dtype):
            raise DfmsdError(
                f"teacher_cache: built for images of {self.layout.frame} in {self.layout.compute_dtype}, got "
                f"{given[0]} in {given[1]}; build another cache for these"
            )


def _int8(name: str, value: Tensor) -> dict[str, Tensor]:
    scale = value.abs().amax(dim=(1, 2)).div_(STEPS).clamp_min_(torch.finfo(torch.float32).tiny)
    return {name: (value / scale[:, None, None]).round_().to(torch.int8), f"{name}.scale": scale}


def _batch(entries: Sequence[Entry], name: str, device: torch.device | str) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # it refuses to stack float16 under bfloat16
        stacked = torch.stack([entry[name] for entry in entries])
    return stacked.to(device, non_blocking=True).float()
