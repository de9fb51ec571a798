"""A frozen teacher's features, computed once for each image instead of once an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.types import FeaturePyramid, LevelSpec
from dfmsd.utils.store import Entry, Store

StorageType = Literal["float16", "int8"]

VERSION = 2
"""Raised whenever the same teacher and image would be stored in another way."""
STEPS = 127
"""Largest int8 that is used: the scale is symmetric."""


class Layout(NamedTuple):
    """What is stored of one image."""

    levels: tuple[LevelSpec, ...]
    """Only those that a loss looks at."""
    frame: tuple[int, int]
    """Height and width of the padded input."""
    arithmetic: torch.dtype = torch.float32
    """In which the teacher computes."""
    storage: StorageType = "float16"

    @property
    def nbytes(self) -> int:
        """Bytes of one image, with the maps' sides rounded up."""
        height, width = self.frame
        values = sum(level.channels * -(-height // level.stride) * -(-width // level.stride) for level in self.levels)
        scales = sum(4 * level.channels for level in self.levels)
        return 2 * values if self.storage == "float16" else values + scales

    def holds(self, entry: Entry) -> bool:
        """Whether an entry is laid out like this."""
        return entry.keys() == {name for level in self.levels for name in self._names(level)} and all(
            entry[level.name].dtype == getattr(torch, self.storage)
            and entry[level.name].ndim == 3
            and entry[level.name].shape[-1] == level.channels
            for level in self.levels
        )

    def _names(self, level: LevelSpec) -> tuple[str, ...]:
        return (level.name, f"{level.name}.scale") if self.storage == "int8" else (level.name,)


def namespace(teacher: nn.Module, layout: Layout) -> str:
    """Hash all that an image's entry depends on but the image itself: weights, buffers, architecture, layout."""
    content = hashlib.blake2b(f"{VERSION} {type(teacher).__qualname__} {teacher} {layout}".encode(), digest_size=16)
    # not the state dict, which leaves out buffers such as the mean and deviation of the pixels
    for kind in (teacher.named_parameters(), teacher.named_buffers()):
        for name, value in kind:
            content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def encode(pyramid: FeaturePyramid, layout: Layout) -> list[Entry]:
    r"""Round a batch's features to what is stored: one entry an image, each level ``H x W x C``.

    int8 stores $\mathrm{round}(127\, x / m)$ and the scale $m / 127$ with $m = \max_{ij} |x|$ of each channel.

    Raises:
        DfmsdError: a value is not finite, or beyond float16.
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
            # copies, since a view would keep the whole batch
            for entry, part in zip(entries, parts.cpu(), strict=True):
                entry[name] = part.clone(memory_format=torch.contiguous_format)
    return entries


def decode(entries: Sequence[Entry], layout: Layout, device: torch.device | str = "cpu") -> FeaturePyramid:
    """Give the stored features of a batch: float32, ``N x C x H x W`` in channels-last memory."""
    pyramid: FeaturePyramid = {}
    for level in layout.levels:
        value = _batch(entries, level.name, device)
        if layout.storage == "int8":
            value *= _batch(entries, f"{level.name}.scale", device)[:, None, None]
        pyramid[level.name] = value.permute(0, 3, 1, 2)
    return pyramid


class TeacherCache:
    """Stored features of one teacher; a `FrozenTeacher` looks here first.

    What a call gives is always the stored, rounded form, so that a feature is the same when it is computed as when it
    is found. On a CPU it does not depend on the other images of the batch either, so that a run that is resumed makes
    what it has lost again to the same bits, in whatever batches.

    Args:
        store: of this teacher and layout alone, see `namespace`.
        layout: of the entries.

    Attributes:
        hits: images found so far.
        misses: images computed so far.
    """

    def __init__(self, store: Store, layout: Layout) -> None:
        self.store = store
        self.layout = layout
        self.hits = 0
        self.misses = 0

    def __call__(
        self, images: Tensor, keys: Sequence[str | None], compute: Callable[[Tensor], FeaturePyramid]
    ) -> FeaturePyramid:
        """Give the features of a batch.

        Args:
            images: ``N x 3 x H x W``.
            keys: of the content of each image; None is never found and not stored.
            compute: the teacher; gets the images of the batch that are missing, on a CPU one by one.

        Raises:
            DfmsdError: images or arithmetic are not those of the layout.
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
        # How many images a kernel gets decides on the order of its sums. On a CPU one at a time takes about as long as
        # all at once, a little more or less by network; on a GPU it would take longer, and sums depend on chance.
        parts = torch.split(images, 1) if images.device.type == "cpu" else [images]
        return [entry for part in parts for entry in encode(compute(part), self.layout)]

    def _find(self, key: str | None) -> Entry | None:
        entry = None if key is None else self.store.get(key)
        return entry if entry is not None and self.layout.holds(entry) else None

    def _check(self, images: Tensor) -> None:
        kind = images.device.type
        arithmetic = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
        given = (tuple(images.shape[-2:]), arithmetic)
        if given != (self.layout.frame, self.layout.arithmetic):
            raise DfmsdError(
                f"teacher_cache: made for frames {self.layout.frame} in {self.layout.arithmetic}, got {given[0]} in "
                f"{given[1]}; make another cache for these"
            )


def _int8(name: str, value: Tensor) -> dict[str, Tensor]:
    scale = value.abs().amax(dim=(1, 2)).div_(STEPS).clamp_min_(torch.finfo(torch.float32).tiny)
    return {name: (value / scale[:, None, None]).round_().to(torch.int8), f"{name}.scale": scale}


def _batch(entries: Sequence[Entry], name: str, device: torch.device | str) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # which would refuse to stack float16 under bfloat16
        stacked = torch.stack([entry[name] for entry in entries])
    return stacked.to(device, non_blocking=True).float()
