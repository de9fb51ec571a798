"""Seeding of the global random generators, and their state after a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch, on all devices.

    Args:
        *key: one number is used as it is; several are hashed into one seed. All at least 0.
    """
    seed = key[0] if len(key) == 1 else int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the state of the generators of Python, NumPy and torch on exit."""
    python, numpy = random.getstate(), np.random.get_state()
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if in_use else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
