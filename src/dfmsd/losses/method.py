"""What a distillation method is: the loss of ONE pyramid level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class HeadLevel(NamedTuple):
    """One level of a student's and a teacher's dense head of one kind; ``A`` anchors lie on it, ``K`` are the classes.

    Tower features are those of the classification and of the regression tower, each ``N x C x H x W``, where both
    towers are cut: behind a normalisation, before the activation.
    """

    arch: str
    """``fcos`` or ``retinanet``."""
    student: tuple[Tensor, Tensor]
    """Tower features."""
    teacher: tuple[Tensor, Tensor]
    """Tower features, without gradient."""
    logits: Tensor
    """The teacher's, ``N x A x K``."""
    boxes: Tensor
    """The teacher's, ``N x A x 4``, xyxy in input pixels."""
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """The rest of the frozen teacher's head: tower features -> logits and boxes."""
    valid: Tensor
    """Bool, ``N x A``: False where an anchor is neither object nor background."""
    positives: Tensor
    """Scalar: what the anchors on objects weigh together on all levels."""


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
    head: HeadLevel | None = None
    """Both heads at this level, for a method on predictions."""


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
