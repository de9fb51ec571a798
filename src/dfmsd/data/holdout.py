"""Training images that are set aside to evaluate on."""

from __future__ import annotations

import hashlib

import numpy as np

from dfmsd.data.split import DetectionSplit
from dfmsd.errors import DfmsdError


def split_holdout(split: DetectionSplit, share: float) -> tuple[DetectionSplit, DetectionSplit]:
    """Split off about this share of the images, chosen by their file names.

    Args:
        split: Split to divide.
        share: 0..1.

    Returns:
        The remaining images and those held out.

    Raises:
        DfmsdError: One of the two has no images.
    """
    held_out = [_unit_hash(path.name) < share for path in split.records.paths]
    if all(held_out) or not any(held_out):
        raise DfmsdError(
            f"data.holdout: a share of {share} holds out {sum(held_out)} of {len(split)} images; choose one that "
            "leaves images on both sides"
        )
    return split.subset(np.flatnonzero(~np.array(held_out))), split.subset(np.flatnonzero(held_out))


def _unit_hash(name: str) -> float:
    """Hash a name to a number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48
