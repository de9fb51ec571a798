"""Headless feature extractors as teachers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd.detectors.base import Detector
from dfmsd.detectors.levels import read_levels
from dfmsd.detectors.normalize import Normalize
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.types import Detections, FeaturePyramid, Target

STRIDES = (8, 16, 32)
"""Strides of the levels computed from a single-scale map: those that all students but SSD have."""


class BackboneTeacher(Detector):
    """A frozen backbone that teaches by its features; it has no classes, detects nothing and cannot be trained here.

    Args:
        model: Module from normalized images to maps ``N x C x H x W``, finest first.
        normalize: Normalization of the images.
        name: Reference that it was loaded from, for messages.
    """

    class_names = ()

    def __init__(self, model: nn.Module, normalize: Normalize, name: str) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.name = name
        self.levels = read_levels(self, self._maps)

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the backbone: level name -> ``N x C x H/stride x W/stride``.

        Raises:
            DfmsdError: The sides of the images are not multiples of 32.
        """
        self.input_sizes.check(images)
        return {level.name: value for level, value in zip(self.levels, self._maps(images), strict=True)}

    def forward(self, images: Tensor, targets: Sequence[Target]) -> NoReturn:
        """Raise: there is no head to train.

        Raises:
            DfmsdError: Always.
        """
        raise DfmsdError(f"{self.name} has no detection head: it can only teach, by its features")

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Raise: there is no head to detect with.

        Raises:
            DfmsdError: Always.
        """
        raise DfmsdError(f"{self.name} has no detection head: it returns features, and no boxes to draw or evaluate")

    def compilable(self) -> Sequence[nn.Module]:
        """Return the whole backbone."""
        return [self.model]

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.model(self.normalize(images))
        return maps


class SingleScalePyramid(nn.Module):
    r"""Compute a pyramid of `STRIDES` from the single map of a plain vision transformer.

    A patch of $p$ pixels counts as $s = 2^{\mathrm{round}(\log_2 p)}$: images are first resized bilinearly by $p / s$
    (by 14/16 for DINOv2's patches), so that the map lies on the cells of stride $s$. Levels coarser than $s$ are
    averages over $2 \times 2$ or more cells; finer ones are bilinear interpolations, which add no detail.

    Args:
        body: Module from images to maps, of which the last is taken.
        patch: Stride of the map in pixels.
    """

    def __init__(self, body: nn.Module, patch: int) -> None:
        super().__init__()
        self.body = body
        self.patch = patch
        self.stride = 2 ** round(math.log2(patch))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the levels of images ``N x 3 x H x W`` with sides that are multiples of 32."""
        if self.patch != self.stride:
            size = [side * self.patch // self.stride for side in pixels.shape[-2:]]
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        value = self.body(pixels)[-1]
        return [_resample(value, self.stride, stride) for stride in STRIDES]


@contextmanager
def convert_errors(reference: str) -> Iterator[None]:
    """Convert the errors of a library's model, while it is built or run on any image size, to one `DfmsdError`."""
    try:
        yield
    except DfmsdError:
        raise
    except Exception as error:  # models of other libraries raise any kind of exception
        raise DfmsdError(
            f"{reference} has no feature maps of images of any size ({foreign_message(error)}); choose another backbone"
        ) from error


def _resample(value: Tensor, stride: int, new_stride: int) -> Tensor:
    """Resample a map to another stride; both are powers of two."""
    if new_stride > stride:
        return F.avg_pool2d(value, new_stride // stride)
    if new_stride < stride:
        return F.interpolate(value, scale_factor=stride // new_stride, mode="bilinear", align_corners=False)
    return value
