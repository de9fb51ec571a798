"""Dense heads, for losses on predictions: their contract, and what one forward pass of them records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class HeadSpec(NamedTuple):
    """Architecture of a dense head; heads that are equal except for ``convs`` can take each other's features."""

    arch: str
    """``fcos``, ``retinanet`` or ``gfl``, as in `DetectorConfig`."""
    classes: tuple[str, ...]
    strides: tuple[int, ...]
    anchors: tuple[tuple[object, ...], ...]
    """Sizes and aspect ratios on each level."""
    channels: int
    """Channels of the towers."""
    convs: int
    """Convolutions in each tower."""
    bins: int = 0
    """Bins of the distribution of a box's side; 0 if a side is a single number."""


class Towers(NamedTuple):
    """Features of one level where the towers are cut: after a normalization, before the activation."""

    classification: Tensor
    """``N x C x H x W``."""
    regression: Tensor
    """``N x C x H x W``."""


class HeadPass(NamedTuple):
    """What a dense head computed on the way to its losses, by level name; a level has ``A`` anchors."""

    towers: Mapping[str, Towers]
    logits: Mapping[str, Tensor]
    """``N x A x K``."""
    box_deltas: Mapping[str, Tensor]
    """Encoded boxes, ``N x A x E``; ``E`` is 4, or 4 times the bins of a side."""
    anchors: Mapping[str, Tensor]
    """``A x 4``, xyxy in input pixels, the same for every image."""
    valid: Mapping[str, Tensor]
    """Bool, ``N x A``: False for anchors that are neither object nor background."""
    objects: Mapping[str, Tensor]
    """Bool, ``N x A``: True for anchors assigned to an object."""
    near: Mapping[str, Tensor]
    """``N x A``, 0..1: overlap of anchors that nearly match an object; 0 elsewhere, and for heads without these."""
    positives: Tensor
    """Scalar: total weight of the anchors assigned to objects, in FCOS their centerness, else 1 each."""


class DenseHead(Protocol):
    """A head on every cell of every level, whose towers can be cut before their last ``reused`` convolutions."""

    @property
    def spec(self) -> HeadSpec:
        """Architecture of the head."""

    def at(self, level: int) -> DenseHead:
        """Return the head of one level, by its index: convolutions are shared, other layers need not be."""

    def towers(self, level: Tensor, reused: int) -> Towers:
        """Run the towers of one level up to the cut; ``0 <= reused < convs``."""

    def predict(self, towers: Towers, reused: int) -> tuple[Tensor, Tensor]:
        """Run the rest, from the activation on: logits ``N x A x K`` and encoded boxes ``N x A x E``."""

    def decode(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """Decode boxes ``N x A x E`` to xyxy in input pixels, ``N x A x 4``; ``anchors`` are ``A x 4``."""
