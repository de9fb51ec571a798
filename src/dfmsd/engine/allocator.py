"""Thresholds of the CPU memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

# parameters of mallopt, from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * 2**20}
"""Map no block separately, never return memory (-1), and grow the heap by at least 256 MiB."""


def keep_freed_memory() -> bool:
    """Make glibc keep the memory that CPU tensors free, for the whole process.

    By default glibc maps every block above a few MiB separately and returns it when freed, so that the kernel zeroes
    the same pages again in every training step. A user's own settings (``MALLOC_*_``, ``GLIBC_TUNABLES``, another
    allocator in ``LD_PRELOAD``) are left alone, as is a machine that trains on a GPU. As this affects the whole
    process, only programs call it, never the library.

    Returns:
        Whether the thresholds were set: on Linux with glibc, without CUDA.
    """
    if platform.libc_ver()[0] != "glibc" or torch.cuda.is_available() or _set_by_user():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items()])


def _set_by_user() -> bool:
    own = any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ
    return own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
