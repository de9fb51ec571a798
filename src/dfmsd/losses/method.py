"""What a distillation method is: the loss of ONE pyramid level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class LossContext(NamedTuple):
    """Where a pair of feature maps comes from."""

    boxes: Sequence[Tensor]
    """Per image ``M x 4``, xyxy in pixels of the padded input."""
    size: tuple[int, int]
    """Height and width of the padded input."""
    stride: int
    """Input pixels per feature cell."""
    stage: int = 1
    """From 1."""
    previous_teacher: Tensor | None = None
    """The previous stage's teacher at the same stride, ``N x C' x H x W``."""


class Method(nn.Module, ABC):
    """The loss of one level, between an aligned student and a teacher; built as ``Method(channels, options)``."""

    Options: ClassVar[type]
    """Dataclass of the method's switches; its ``__post_init__`` refuses impossible ones."""
    terms: tuple[str, ...]
    """Names of what `forward` gives."""
    default_weight: ClassVar[float] = 1.0
    """Factor on every term where a run states none: the published one."""
    needs_previous: bool = False
    """Whether the previous stage's teacher is wanted from the second stage on."""
    correlation: Tensor | None = None
    """`dfmsd.functional.pearson` of the last call's pair, from a method that computes it anyway."""

    @abstractmethod
    def __init__(self, channels: int, options: Any) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give named, weighted scalars.

        Args:
            student: aligned, ``N x C x H x W``, float32 or float64.
            teacher: ``N x C x H x W``, without gradient.
            context: boxes, stride and stage.
        """
