"""Versions and hardware that the results of a run depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = ("dfmsd", "torch", "torchvision", "timm", "pytorch-lightning", "hotcoco")


def describe_environment() -> dict[str, Any]:
    """Return the versions of Python and the main packages, the platform, device and number of threads."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }
