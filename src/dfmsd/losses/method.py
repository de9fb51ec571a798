"""What a distillation method is: the loss of ONE pyramid level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from dfmsd.errors import DfmsdError


class HeadSide(NamedTuple):
    """What one detector's dense head makes of one level; ``A`` anchors lie on it, ``K`` are the classes."""

    towers: tuple[Tensor, Tensor]
    """Features of the classification and of the regression tower, each ``N x C x H x W``, where both are cut: behind a
    normalisation, before the activation."""
    logits: Tensor
    """``N x A x K``."""
    box_deltas: Tensor
    """Encoded boxes, ``N x A x E``: 4 numbers, or the logits of 4 distributions one after the other."""


class HeadLevel(NamedTuple):
    """One level of a student's and a teacher's dense head; ``A`` anchors lie on it."""

    arch: str
    """``fcos``, ``retinanet`` or ``gfl``."""
    student: HeadSide
    """Its own towers and predictions."""
    teacher: HeadSide
    """Its own on its own pyramid, without gradient."""
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """The rest of the frozen teacher's head: tower features -> logits and encoded boxes."""
    decode: Callable[[Tensor], Tensor]
    """Encoded boxes -> ``N x A x 4``, xyxy in input pixels."""
    valid: Tensor
    """Bool, ``N x A``: False where an anchor is neither object nor background."""
    objects: Tensor
    """Bool, ``N x A``: True where an anchor learns an object."""
    near: Tensor
    """``N x A``, 0..1: overlap of anchors that nearly match an object, 0 elsewhere."""
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
    head: HeadLevel | None = None
    """Both heads at this level, for a method on predictions."""


def refuse_negative(weights: Mapping[str, float]) -> None:
    """Refuse options below 0.

    Raises:
        DfmsdError: the first of them.
    """
    for name, value in weights.items():
        if value < 0:
            raise DfmsdError(f"loss.{name}: {value} is negative; give 0 or more")


class Method(nn.Module, ABC):
    """The loss of one level, between an aligned student and a teacher; built as ``Method(channels, options)``."""

    Options: ClassVar[type]
    """Dataclass of the method's switches; its ``__post_init__`` refuses impossible ones."""
    terms: tuple[str, ...]
    """Names of what `forward` gives."""
    default_weight: ClassVar[float] = 1.0
    """Factor on every term where a run states none: the published one."""
    correlation: Tensor | None = None
    """`dfmsd.losses.functional.pearson` of the last call's pair, from a method that computes it anyway."""

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


class HeadMethod(Method):
    """A method on predictions, which finds both heads in ``context.head``."""

    name: ClassVar[str]
    """Key of `dfmsd.losses.LOSSES`, for messages."""
    purpose: ClassVar[str]
    """What it does with heads, for messages: "crosskd <purpose>"."""
    archs: ClassVar[tuple[str, ...]]
    """Families of heads that it can compare."""
    alike: ClassVar[tuple[str, ...]]
    """In what two heads have to agree: fields of `dfmsd.detectors.base.HeadSpec`."""

    def reused(self, arch: str, convs: int) -> int | None:
        """Tell how many of a tower's last convolutions are the teacher's; None where it does not matter.

        Args:
            arch: of both heads.
            convs: of the shorter tower.
        """
        return None

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give the terms of `compare`.

        Args:
            student: not used.
            teacher: not used.
            context: has the heads.

        Raises:
            DfmsdError: it has none.
        """
        if context.head is None:
            raise DfmsdError(
                f"{self.name} compares predictions: pass heads= to the criterion, or choose a loss on features such as "
                "pkd"
            )
        return self.compare(context.head)

    @abstractmethod
    def compare(self, head: HeadLevel) -> dict[str, Tensor]:
        """Give named, weighted scalars, at least 0, of the two heads at one level."""
