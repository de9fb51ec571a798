"""One method on all levels of two pyramids: pairing, alignment, precision and weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.losses.align import Align, Pairing, Resize, pair_levels
from dfmsd.losses.basis import PyramidBasis
from dfmsd.losses.functional import full_precision, pearson
from dfmsd.losses.method import HeadLevel, HeadMethod, LossContext, Method, QueryPair
from dfmsd.types import FeaturePyramid, LevelSpec


class Criterion(nn.Module):
    """Compare two pyramids with one method per level.

    Its parameters (alignment, generation) belong in the optimizer and are dropped after training.

    Args:
        method: class of the loss of one level.
        options: of the method.
        student_levels: levels of the student.
        teacher_levels: levels of the teacher.
        pairing: see `dfmsd.losses.align.pair_levels`; heads are compared level by level.
        weight: factor on every term; None takes the method's published one.
        project: see `dfmsd.losses.align.Align`.
        resize: see `dfmsd.losses.align.Align`.

    Attributes:
        basis: maps the teacher's pyramid before it is compared, see `PyramidBasis`; None compares it as it is.
        pairs: the paired levels.
        terms: names of the terms of each level.
        diagnostics: after a call, ``pearson/<level>`` of the unmasked aligned student, detached. It shows
            the student's progress: if ``mask`` falls while pearson stays flat, the generation layers learn and the
            student does not.
    """

    def __init__(
        self,
        method: type[Method],
        options: object,
        student_levels: Sequence[LevelSpec],
        teacher_levels: Sequence[LevelSpec],
        *,
        pairing: Pairing = "auto",
        weight: float | None = None,
        project: bool = False,
        resize: Resize = "student",
    ) -> None:
        super().__init__()
        self.basis: PyramidBasis | None = None
        self.compares_heads = issubclass(method, HeadMethod)  # of all levels, with nothing to align
        self.pairs = pair_levels(student_levels, teacher_levels, "index" if self.compares_heads else pairing)
        self.resize: Resize = resize
        self.weight = method.default_weight if weight is None else weight
        convolution = None if self.compares_heads else project
        self.align = nn.ModuleList(Align(pair, project=convolution, resize=resize) for pair in self.pairs)
        methods = [method(pair.teacher.channels, options) for pair in self.pairs]
        self.methods = nn.ModuleList(methods)
        self.terms: tuple[str, ...] = methods[0].terms
        self.diagnostics: dict[str, Tensor] = {}

    @property
    def feature_terms(self) -> tuple[str, ...]:
        """The terms that compare features, not predictions."""
        return () if self.compares_heads else self.terms

    def forward(
        self,
        student: FeaturePyramid,
        teacher: FeaturePyramid,
        *,
        boxes: Sequence[Tensor] | None = None,
        size: tuple[int, int] | None = None,
        stage: int = 1,
        heads: Mapping[str, HeadLevel] | None = None,
        queries: QueryPair | None = None,
    ) -> dict[str, Tensor]:
        """Compute named, weighted scalars whose sum is the loss.

        Args:
            student: pyramid of the student, level name -> ``N x C_S x H' x W'``.
            teacher: pyramid of the teacher, level name -> ``N x C_T x H x W``; gets no gradient.
            boxes: per image ``M x 4``, xyxy in pixels of the padded input; required by some losses only.
            size: height and width of the padded input; required by some losses only.
            stage: counted from 1.
            heads: the two heads at each student level, for methods that compare predictions.
            queries: the predictions of both detectors' queries, for methods that compare these.

        Returns:
            ``<term>/<student level>`` -> scalar in float32 (float64 for float64 features), also under autocast.

        Raises:
            DfmsdError: the loss requires an argument that is None, or a level is missing or has other channels, or
                boxes or stage are impossible.
        """
        _check_context(len(next(iter(student.values()))), boxes, stage)
        terms: dict[str, Tensor] = {}
        teacher = teacher if self.basis is None else self.basis(teacher)
        with torch.autocast(next(iter(student.values())).device.type, enabled=False):
            for pair, align, method in zip(self.pairs, self.align, self.methods, strict=True):
                aligned, target = align(
                    full_precision(_level(student, pair.student, "student")),
                    full_precision(_level(teacher, pair.teacher, "teacher").detach()),
                )
                head = None if heads is None else heads[pair.student.name]
                context = LossContext(boxes, size, pair.stride(self.resize), stage, head)
                for name, value in method(aligned, target, context).items():
                    terms[f"{name}/{pair.student.name}"] = self.weight * value
                if not self.compares_heads or pair.student.channels == pair.teacher.channels:
                    self.diagnostics[f"pearson/{pair.student.name}"] = self._correlation(method, aligned, target)
        return terms

    @staticmethod
    @torch.no_grad()
    def _correlation(method: Any, aligned: Tensor, target: Tensor) -> Tensor:
        known: Tensor | None = method.correlation
        return pearson(aligned, target) if known is None else known


def _check_context(images: int, boxes: Sequence[Tensor] | None, stage: int) -> None:
    if stage < 1:
        raise DfmsdError(f"stage must be at least 1, got {stage}; stages are counted from 1")
    if boxes is None:
        return
    if len(boxes) != images:
        raise DfmsdError(f"boxes: got those of {len(boxes)} image(s) for {images}; pass one tensor per image")
    for index, of_image in enumerate(boxes):
        if of_image.ndim != 2 or of_image.shape[1] != 4:
            shape = " x ".join(map(str, of_image.shape))
            raise DfmsdError(f"boxes.{index} has the shape {shape}; expected M x 4, also for M = 0")


def _level(pyramid: FeaturePyramid, level: LevelSpec, owner: str) -> Tensor:
    """Return the features of a level."""
    if level.name not in pyramid:
        raise DfmsdError(
            f"the {owner}'s features have no level {level.name!r}, but {', '.join(pyramid)}; use the LevelSpecs' names"
        )
    features = pyramid[level.name]
    if features.shape[1] != level.channels:
        raise DfmsdError(
            f"the {owner}'s level {level.name} has {features.shape[1]} channels; its LevelSpec says {level.channels}"
        )
    return features
