"""Images of any common type as RGB tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dfmsd.data.images import read_image, refuse_url, rgb_tensor
from dfmsd.errors import DfmsdError

ImageLike: TypeAlias = str | Path | Image.Image | npt.NDArray[Any] | Tensor
"""Image file, PIL image, RGB array ``H x W x 3`` (uint8) or RGB tensor ``3 x H x W`` (uint8, or float in [0, 1])."""


def to_rgb(image: ImageLike) -> Tensor:
    """Convert an image to uint8 RGB, ``3 x H x W``.

    Files and PIL images may have any mode with 8 or 16 bits; they are rotated by their EXIF orientation.

    Raises:
        DfmsdError: The file cannot be decoded, or the image has another type, shape or dtype.
    """
    if isinstance(image, str | os.PathLike):
        refuse_url(image)
        return read_image(image)
    if isinstance(image, Image.Image):
        pixels = rgb_tensor(image, "image")
    elif isinstance(image, np.ndarray):
        pixels = _from_array(image)
    elif isinstance(image, Tensor):
        pixels = _from_tensor(image.detach().cpu())
    else:
        raise DfmsdError(f"image must be a path, a PIL image, a NumPy array or a tensor, got {type(image).__name__}")
    if not pixels.numel():
        raise DfmsdError(f"image has no pixels: {pixels.shape[1]} x {pixels.shape[2]}")
    return pixels


def _from_array(image: npt.NDArray[Any]) -> Tensor:
    if image.ndim != 3 or image.shape[2] != 3:
        raise DfmsdError(
            f"an array must be H x W x 3, RGB, got {_shape(image)}; convert it with Image.fromarray(array) of PIL and "
            "pass that"
        )
    if image.dtype != np.uint8:
        raise DfmsdError(f"an array must be uint8 with pixels in 0..255, got {image.dtype}; convert it first")
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def _from_tensor(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3:
        raise DfmsdError(
            f"a tensor must be 3 x H x W, RGB, got {_shape(image)}; pass several images as a list, and H x W x 3 as an "
            "array"
        )
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise DfmsdError(f"a tensor must be uint8, or floating point in [0, 1], got {image.dtype}")
    if image.numel() and not (image.min() >= 0 and image.max() <= 1):
        low, high = float(image.min()), float(image.max())
        raise DfmsdError(f"a floating-point tensor must have pixels in [0, 1], got {low:g}..{high:g}")
    return (image * 255).round().to(torch.uint8)


def _shape(image: npt.NDArray[Any] | Tensor) -> str:
    return " x ".join(map(str, image.shape)) or "a scalar"
