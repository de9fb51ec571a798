"""Training images that are set aside to evaluate on."""

from __future__ import annotations

import hashlib

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
    held_out = {record.id for record in split.records if _unit_hash(record.path.name) < share}
    if not 0 < len(held_out) < len(split):
        raise DfmsdError(
            f"data.holdout: a share of {share} holds out {len(held_out)} of {len(split)} images; choose one that "
            "leaves images on both sides"
        )
    return split.subset(lambda record: record.id not in held_out), split.subset(lambda record: record.id in held_out)


def _unit_hash(name: str) -> float:
    """Hash a name to a number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48
