"""Base classes of distillation methods: the loss of one pyramid level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.types import Queries

_T = TypeVar("_T")


class HeadSide(NamedTuple):
    """Output of one detector's dense head on one level with ``A`` anchors and ``K`` classes."""

    towers: tuple[Tensor, Tensor]
    """Features of the classification and the regression tower at the cut, each ``N x C x H x W``: after a
    normalization, before the activation."""
    logits: Tensor
    """``N x A x K``."""
    box_deltas: Tensor
    """Encoded boxes, ``N x A x E``: 4 numbers, or the concatenated logits of 4 distributions."""


class HeadLevel(NamedTuple):
    """One level of a student's and a teacher's dense head, with ``A`` anchors."""

    arch: str
    """``fcos``, ``retinanet`` or ``gfl``."""
    student: HeadSide
    """The student's head on the student's pyramid."""
    teacher: HeadSide
    """The teacher's head on the teacher's pyramid, without gradient."""
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """The frozen teacher's head from the cut on: tower features -> logits and box deltas."""
    decode: Callable[[Tensor], Tensor]
    """Box deltas -> ``N x A x 4``, xyxy in input pixels."""
    valid: Tensor
    """Bool, ``N x A``: False where an anchor is neither object nor background."""
    objects: Tensor
    """Bool, ``N x A``: True where an anchor is assigned to an object."""
    near: Tensor
    """``N x A``, 0..1: overlap of the anchors that nearly match an object, in LD's valuable localization region, 0
    elsewhere."""
    positives: Tensor
    """Scalar: total weight of the positive anchors of all levels."""


class LossContext(NamedTuple):
    """What a method may need to know besides a pair of feature maps."""

    boxes: Sequence[Tensor] | None
    """Per image ``M x 4``, xyxy in pixels of the padded input; None if the criterion was called without."""
    size: tuple[int, int] | None
    """Height and width of the padded input; None if the criterion was called without."""
    stride: float
    """Input pixels per feature cell."""
    stage: int = 1
    """Counted from 1."""
    head: HeadLevel | None = None
    """Both heads at this level, for methods that compare predictions."""


def refuse_negative(weights: Mapping[str, float]) -> None:
    """Refuse options below 0.

    Raises:
        DfmsdError: on the first negative one.
    """
    for name, value in weights.items():
        if value < 0:
            raise DfmsdError(f"loss.{name} must be at least 0, got {value}")


def refuse_outside_unit(shares: Mapping[str, float]) -> None:
    """Refuse options outside 0..1.

    Raises:
        DfmsdError: on the first such one.
    """
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise DfmsdError(f"loss.{name} must be in 0..1, got {value}")


class Method(nn.Module, ABC):
    """Loss of one level between an aligned student and a teacher, built as ``Method(channels, options)``."""

    name: ClassVar[str]
    """Name in `dfmsd.losses.LOSSES`; `dfmsd.losses.register` sets it."""
    Options: ClassVar[type]
    """Dataclass of the method's options, whose ``__post_init__`` refuses impossible values."""
    terms: tuple[str, ...]
    """Names of the terms that `forward` returns."""
    default_weight: ClassVar[float] = 1.0
    """Factor on every term unless a run states one: the published weight."""
    rotates: ClassVar[bool] = False
    """Whether ``basis: auto`` may rotate the teacher for this method; published methods take the teacher as it is."""
    correlation: Tensor | None = None
    """`dfmsd.losses.functional.pearson` of the last pair; only methods that compute it anyway set it."""

    @abstractmethod
    def __init__(self, channels: int, options: Any) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the named, weighted terms of one level.

        Args:
            student: aligned, ``N x C x H x W``, float32 or float64.
            teacher: ``N x C x H x W``, without gradient.
            context: boxes, padded size, stride and stage.

        Returns:
            Term -> scalar.
        """

    def require(self, value: _T | None, argument: str) -> _T:
        """Return an optional argument of the criterion that this method cannot do without.

        Args:
            value: a field of the context, such as ``context.boxes``.
            argument: its name in `Criterion.forward`.

        Raises:
            DfmsdError: the criterion was called without it.
        """
        if value is None:
            raise DfmsdError(f"the loss {self.name} needs {argument}: pass {argument}= to the criterion")
        return value


class PredictionMethod(Method):
    """Loss on predictions instead of features."""


class QueryPair(NamedTuple):
    """Predictions of the queries of two detectors, whose numbers may differ."""

    student: Queries
    teacher: Queries
    """Without gradient."""


class QueryMethod(PredictionMethod):
    """Loss on the predictions of queries, which has no levels."""

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Refuse features.

        Raises:
            DfmsdError: always; `compare` takes the predictions.
        """
        raise DfmsdError(f"the loss {self.name} compares queries, not features; call it as `dfmsd.losses.build` does")

    @abstractmethod
    def compare(self, queries: QueryPair) -> dict[str, Tensor]:
        """Compute the named, weighted terms, each at least 0."""


class HeadMethod(PredictionMethod):
    """Loss on the predictions of two dense heads, which ``context.head`` holds."""

    purpose: ClassVar[str]
    """What the method does, for messages: ``<name> <purpose>``."""
    archs: ClassVar[tuple[str, ...]]
    """Families of heads that it can compare."""
    alike: ClassVar[tuple[str, ...]]
    """Fields of `dfmsd.detectors.dense.HeadSpec` that must be equal for both heads."""

    def reused(self, arch: str, convs: int) -> int | None:
        """Return how many of a tower's last convolutions are the teacher's; None where it does not matter.

        Args:
            arch: of both heads.
            convs: of the shorter tower.
        """
        return None

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Return the terms of `compare`.

        Args:
            student: not used.
            teacher: not used.
            context: holds the heads.

        Raises:
            DfmsdError: the criterion was called without heads.
        """
        if context.head is None:
            raise DfmsdError(
                f"the loss {self.name} compares predictions: pass heads= to the criterion, or choose a loss on "
                "features such as pkd"
            )
        return self.compare(context.head)

    @abstractmethod
    def compare(self, head: HeadLevel) -> dict[str, Tensor]:
        """Compute the named, weighted terms of the two heads at one level, each at least 0."""
