"""Entries of a feature store."""

from __future__ import annotations

import torch

from dfmsd.utils.store import Entry

BYTES = 1000


def entry(value: int = 1) -> Entry:
    """Build an entry of `BYTES`."""
    return {"a": torch.full((30, 10), value, dtype=torch.int16), "b": torch.full((100,), value, dtype=torch.float32)}


def same(a: Entry | None, b: Entry) -> bool:
    return a is not None and a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
