"""Sizes of images that a detector can take."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from dfmsd.data.config import MAX_IMAGE_SIZE, STRIDE
from dfmsd.errors import DfmsdError

ASPECT = 4 / 3
"""Longer to shorter side of the usual photograph, as most of COCO's are."""


class InputSizes(NamedTuple):
    """Which sizes of images a model can take, in pixels; the default suits a pyramid of strides up to 32."""

    step: int = STRIDE
    """Both sides must be multiples of this."""
    area: int = 1
    """The area must be at least this."""
    square: bool = False
    """Whether the sides must be equal."""

    def fitting(self, side: int) -> int:
        """Return the smallest side of a square from ``side`` on that the model can take and the data module makes."""
        step = math.lcm(self.step, STRIDE)
        return -(-max(side, math.isqrt(self.area - 1) + 1) // step) * step

    def nearest(self, side: float) -> int:
        """Return the side of a square that the model can take and the data module makes nearest to ``side``."""
        step = math.lcm(self.step, STRIDE)
        rounded = math.floor(min(side, MAX_IMAGE_SIZE) / step + 0.5) * step
        return max(rounded, self.fitting(1))

    def check(self, images: Tensor) -> None:
        """Check the sides of images ``N x 3 x H x W``.

        Raises:
            DfmsdError: The model cannot take them.
        """
        height, width = images.shape[-2:]
        found = f"images of {height} x {width} pixels"
        if height % self.step or width % self.step:
            raise DfmsdError(f"{found}: pad both sides to multiples of {self.step}")
        if self.square and height != width:
            raise DfmsdError(f"{found}: this model takes squares only; pad to a square (data.pad: square)")
        if height * width < self.area:
            raise DfmsdError(f"{found} are too small for this model: a square needs at least {self.fitting(1)} a side")

    def check_side(self, side: int, name: str, owner: str = "this model") -> None:
        """Check a setting, before there is an image.

        Args:
            side: Side of the square input.
            name: Name of the setting, for the message.
            owner: The model, for the message.

        Raises:
            DfmsdError: The model cannot take squares of this side; the message says which it can.
        """
        if side != self.fitting(side):
            first = self.fitting(1)
            step = math.lcm(self.step, STRIDE)
            sizes = f"{first}, {first + step}, {first + 2 * step}, ..."
            raise DfmsdError(f"{name}: {owner} cannot take images of {side} pixels a side; choose one of {sizes}")

    def check_batches(self, side: int, pad: str, owner: str, name: str = "data.image_size") -> None:
        """Check the batches of a run before the first one is made.

        Args:
            side: Longer side of the images.
            pad: ``square`` or ``batch``, see `DataConfig`.
            owner: The model, for the message.
            name: Name of the setting of the side, for the message.

        Raises:
            DfmsdError: The model cannot take images of this size, or padded like this.
        """
        self.check_side(side, name, owner)
        if pad == "batch" and (self.square or STRIDE % self.step):
            wanted = "squares" if self.square else f"sides that are multiples of {self.step}"
            raise DfmsdError(f"data.pad: {owner} takes {wanted} only, and batch makes others; set data.pad: square")


def longer_side(shorter: float, longest: float | None) -> float:
    """Return the longer side of a usual image that a library resizes by its shorter one.

    Args:
        shorter: Length that its shorter side gets, in pixels.
        longest: What its longer side may be at most; None does not limit it.
    """
    return min(shorter * ASPECT, longest or math.inf)
