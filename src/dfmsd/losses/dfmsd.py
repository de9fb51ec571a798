"""DFMSD at one pyramid level: dual feature masking, masking enhancement and semantic alignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.functional.masking import Direction
from dfmsd.losses.generation import Generation, SelfAdjustingFusion, generation_blocks
from dfmsd.losses.method import LossContext, Method, refuse_negative, refuse_outside_unit

Levels = Literal["cells", "equal"]
ERROR_STRENGTH = 1.0
"""``gamma`` of `functional.enhance_attention`, from the second stage on."""
OBJECT_STRENGTH = 1.0
"""``delta`` of `functional.enhance_attention`, from the second stage on."""
RATIO_STEP = 0.1
"""Added to ``ratio`` in every stage after the first."""
RATIO_MAX = 0.75
"""Upper limit of the raised ratio."""
REFERENCE_STRIDE = 8
"""Stride of the level that ``levels: cells`` gives the weight 1: the finest one of most detectors."""


@dataclass(frozen=True)
class DFMSDOptions:
    """Options of DFMSD, one for every choice that the abstract leaves open.

    Args:
        alpha: weight of the term ``mask``, the generation of masked features; 0 drops it.
        beta: weight of the term ``sfa``, the semantic alignment; 0 drops it.
        spatial: mask positions.
        channel: mask channels.
        ratio: fraction of the positions masked in stage 1, in 0..1.
        channel_ratio: fraction of the channels masked, in 0..1.
        direction: what is masked, see `functional.select_mask`.
        tau: temperature of the attention, > 0; for positions relative to the mean magnitude of the image's feature.
        generation: size of the generation layers, see `generation.generation_blocks`; ``light`` is faster, with about
            1 AP less (docs/lab-notebook.md).
        enhancement: from the second stage on, mask more positions, and prefer those inside objects and those where the
            student's error is large.
        levels: ``cells`` weights a level by its number of cells (positions), see `level_share`, so that every cell
            counts equally, as in the sums of MGD and FGD; ``equal`` weights all levels equally, as the means of PKD do.
        eps: added to standard deviations, > 0.
    """

    removed: ClassVar[Mapping[str, Any]] = {
        "focus": 0.0,
        "selection": "topk",
        "threshold": 1.0,
        "target": "standardized",
        "gamma": 1.0,
        "delta": 1.0,
        "ratio_step": 0.1,
        "ratio_max": 0.75,
    }
    """Options of earlier versions, see `dfmsd.utils.removed.drop_removed`."""
    alpha: float = 1.0
    beta: float = 1.0
    spatial: bool = True
    channel: bool = True
    ratio: float = 0.5
    channel_ratio: float = 0.3
    direction: Direction = "important"
    tau: float = 0.5
    generation: Generation = "full"
    enhancement: bool = True
    levels: Levels = "cells"
    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: a ratio outside 0..1, a temperature <= 0, a negative weight, no masking branch, or nothing left
                by the masks.
        """
        refuse_outside_unit({name: getattr(self, name) for name in ("ratio", "channel_ratio")})
        refuse_negative({name: getattr(self, name) for name in ("alpha", "beta")})
        if self.tau <= 0 or self.eps <= 0:
            raise DfmsdError(f"loss.tau and loss.eps must be above 0, got {self.tau} and {self.eps}")
        if self.alpha == 0 and self.beta == 0:
            raise DfmsdError(
                "loss.alpha and loss.beta are both 0, so nothing is distilled; use `no_distill` for a baseline"
            )
        if self.alpha > 0 and not (self.spatial or self.channel):
            raise DfmsdError("loss.spatial and loss.channel are both off; switch one on, or set loss.alpha to 0")
        kept = [1 - self.ratio] * self.spatial + [1 - self.channel_ratio] * self.channel
        if self.alpha > 0 and max(kept) == 0:
            raise DfmsdError(
                "loss.ratio or loss.channel_ratio must be below 1: with everything masked the student learns nothing"
            )


class DFMSD(Method):
    r"""Dual feature masking and semantic alignment of one level.

    $L = s\,(\alpha\,\mathrm{mean}(R - z(T))^2 + \beta\,\frac12 \mathrm{mean} (z(X) - z(T))^2)$ with
    $R = w_s G_s(X \cdot M_s) + w_c G_c(X \cdot M_c)$ and $s$ the level's share, see `level_share`.

    Args:
        channels: of the aligned pair.
        options: see `DFMSDOptions`.

    Source: reconstruction of DFMSD (arXiv 2407.13147) from its abstract, see docs/concepts.md.
    """

    name = "dfmsd"
    Options: ClassVar[type] = DFMSDOptions
    rotates = True

    def __init__(self, channels: int, options: DFMSDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        self.terms = tuple(name for name, weight in (("mask", options.alpha), ("sfa", options.beta)) if weight > 0)
        branches = [name for name in ("spatial", "channel") if getattr(options, name)] if options.alpha else []
        self.generation = generation_blocks(branches, channels, options.generation)
        self.fusion = SelfAdjustingFusion() if len(branches) > 1 else None

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the weighted terms ``mask`` and ``sfa``.

        The arguments are those of `Method.forward`. The boxes are required by ``enhancement`` from the second
        stage on, the padded size by ``levels: cells``.
        """
        o = self.options
        standard_teacher = functional.standardize(teacher, o.eps)
        alignment = functional.align_distributions(student, standard_teacher, o.eps)
        self.correlation = alignment.correlation
        share = level_share(teacher, self.require(context.size, "size")) if o.levels == "cells" else 1.0
        terms = {}
        if o.alpha > 0:
            masks = self.masks(teacher, context, alignment.difference)
            terms["mask"] = share * o.alpha * self.reconstruction_error(student, masks, standard_teacher)
        if o.beta > 0:
            terms["sfa"] = share * o.beta * alignment.error
        return terms

    @torch.no_grad()
    def masks(self, teacher: Tensor, context: LossContext, difference: Tensor) -> dict[str, Tensor]:
        """Choose the masks of the active branches for one step.

        Args:
            teacher: ``N x C x H x W``.
            context: boxes, stride and stage.
            difference: ``z(S) - z(T)``, ``N x C x H x W``, for ``enhancement``.

        Returns:
            ``spatial``: ``N x 1 x H x W`` and ``channel``: ``N x C x 1 x 1``; 0 = masked.
        """
        o = self.options
        masks = {}
        if o.spatial:
            attention, ratio = functional.spatial_attention(functional.per_magnitude(teacher), o.tau), o.ratio
            if o.enhancement and context.stage > 1:
                attention = self._enhance(attention, context, difference)
                ratio = functional.stage_ratio(o.ratio, context.stage, RATIO_STEP, RATIO_MAX)
            masks["spatial"] = functional.select_mask(attention, ratio, direction=o.direction)
        if o.channel:
            attention = functional.channel_attention(teacher, o.tau)
            masks["channel"] = functional.select_mask(attention, o.channel_ratio, direction=o.direction)
        return masks

    def _enhance(self, attention: Tensor, context: LossContext, difference: Tensor) -> Tensor:
        boxes, size = self.require(context.boxes, "boxes"), (attention.shape[2], attention.shape[3])
        objects = functional.object_cells(boxes, context.stride, size)
        error = difference.abs().mean(dim=1, keepdim=True)
        return functional.enhance_attention(
            attention, error=error, objects=objects, gamma=ERROR_STRENGTH, delta=OBJECT_STRENGTH
        )

    def reconstruction_error(self, student: Tensor, masks: dict[str, Tensor], target: Tensor) -> Tensor:
        """Generate the target, ``N x C x H x W``, from the masked student; return the mean squared error."""
        weight = None if self.fusion is None else self.fusion.weight
        blocks = self.generation
        return functional.dfmsd_mask(student, target, [masks[name] for name in blocks], list(blocks.values()), weight)


def level_share(feature: Tensor, size: tuple[int, int]) -> float:
    """Return the number of cells of a level, relative to a level of stride 8 on the same input.

    Args:
        feature: ``N x C x H x W``.
        size: height and width of the padded input.

    >>> level_share(torch.zeros(2, 8, 4, 4), (64, 64))  # stride 16
    0.25
    """
    height, width = size
    return feature.shape[2] * feature.shape[3] * REFERENCE_STRIDE**2 / (height * width)
