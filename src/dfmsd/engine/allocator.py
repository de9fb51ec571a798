"""Memory that training frees stays with the process, instead of being mapped and zeroed anew in every step."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

# the parameters of mallopt, from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * 2**20}
"""No block is mapped by itself, nothing is given back (-1 is never), and the heap grows by at least 256 MiB."""


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors on the CPU free.

    By default glibc maps every block above some MiB by itself and gives it back when it is freed, so that the kernel
    zeroes the same pages again in each step of a training. A user's own settings (``MALLOC_*_``, ``GLIBC_TUNABLES``,
    another allocator in ``LD_PRELOAD``) are left alone, and so is a machine that trains on a GPU.

    Returns:
        Whether the thresholds were set: on Linux with glibc, without CUDA.
    """
    if platform.libc_ver()[0] != "glibc" or torch.cuda.is_available() or _user_chose():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items()])


def _user_chose() -> bool:
    own = any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ
    return own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
