"""Compute devices and CPU cores."""

from __future__ import annotations

import os

import torch

from dfmsd.errors import DfmsdError


def read_device(device: torch.device | str | None) -> torch.device:
    """Return a device by its name; None is `default_device`.

    Raises:
        DfmsdError: There is no such kind of device, or none on this machine.
    """
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DfmsdError(f"device: unknown device {device!r}; expected cpu, cuda or the like") from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DfmsdError(f"device: {found} is not available on this machine; leave it out, or pass cpu") from error
    return found


def default_device() -> torch.device:
    """Return the first GPU (CUDA or MPS) if one is available, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def supports_bf16() -> bool:
    """Return whether runs on this machine compute on a CUDA GPU with bf16 in hardware, not emulated."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on a GPU is done; return at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def available_cores() -> int:
    """Return the number of CPU cores this process may run on (``os.process_cpu_count`` from Python 3.13 on)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int | None:
    """Return the machine's RAM in bytes; None where the operating system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
