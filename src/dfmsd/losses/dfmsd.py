"""DFMSD at one pyramid level: dual feature masking, masking enhancement, semantic alignment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional, masking, objects
from dfmsd.losses.generation import Generation, SelfAdjustingFusion, generation_blocks
from dfmsd.losses.masking import Direction, Enhancement, Selection
from dfmsd.losses.method import LossContext, Method, refuse_negative

TargetForm = Literal["standardized", "raw", "teacher"]
Levels = Literal["cells", "equal"]
REFERENCE_STRIDE = 8
"""Of the level that weighs 1 where levels weigh as much as they have cells: the finest one of most detectors."""


@dataclass(frozen=True)
class DFMSDOptions:
    """Every choice of the method that the abstract leaves open, as a switch.

    Args:
        alpha: weight of the reconstruction of masked features (term ``mask``); 0 drops the branch. Students from random
            weights gained more with 1, pretrained ones with 0; 0.3 was close to the better on both (docs/results.md).
        beta: weight of the semantic alignment (term ``sfa``); 0 drops it.
        spatial: mask positions.
        channel: mask channels.
        ratio: share of positions masked in stage 1, 0..1.
        channel_ratio: share of channels masked, 0..1.
        selection: how masks follow the attention, see `masking.select_mask`.
        direction: what is masked, see `masking.select_mask`.
        threshold: for ``selection: threshold``.
        tau: temperature of the attention.
        target: what is rebuilt: ``standardized`` z(T); ``raw`` T; ``teacher`` (T - mean_T) / std_T, with
            the student on the teacher's statistics too, which keeps the absolute feature.
        generation: the layers that rebuild, see `generation.generation_blocks`.
        enhancement: how masking grows harder from the second stage on; all but ``none`` also raise the ratio.
        gamma: strength of ``error``.
        delta: strength of ``object``.
        ratio_step: added to ``ratio`` at every stage after the first.
        ratio_max: upper end of the ratio.
        levels: ``cells`` weighs a level by its number of cells, see `level_share`, so that a cell counts alike on all
            levels, as in the sums of MGD and FGD; ``equal`` weighs all levels alike, as the means of PKD do.
        focus: share of the alignment's weight that objects have to themselves, 0..1, see `objects.object_focus`.
        eps: of the standardisation.
    """

    alpha: float = 0.3
    beta: float = 1.0
    spatial: bool = True
    channel: bool = True
    ratio: float = 0.5
    channel_ratio: float = 0.3
    selection: Selection = "topk"
    direction: Direction = "important"
    threshold: float = 1.0
    tau: float = 0.5
    target: TargetForm = "standardized"
    generation: Generation = "light"
    enhancement: Enhancement = "error+object"
    gamma: float = 1.0
    delta: float = 1.0
    ratio_step: float = 0.1
    ratio_max: float = 0.75
    levels: Levels = "cells"
    focus: float = 0.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            DfmsdError: a ratio outside 0..1, a temperature <= 0, a negative weight, no masking branch, or
                ``threshold`` with ``random``.
        """
        for name in ("ratio", "channel_ratio", "ratio_max", "focus"):
            if not 0 <= getattr(self, name) <= 1:
                raise DfmsdError(f"loss.{name}: {getattr(self, name)} is not a share between 0 and 1")
        refuse_negative({name: getattr(self, name) for name in ("alpha", "beta", "gamma", "delta", "ratio_step")})
        if self.tau <= 0 or self.eps <= 0:
            raise DfmsdError(f"loss.tau and loss.eps must be above 0, got {self.tau} and {self.eps}")
        if self.alpha == 0 and self.beta == 0:
            raise DfmsdError("loss.alpha and loss.beta are both 0: nothing to distil; use --no-distill for a baseline")
        if self.alpha > 0 and not (self.spatial or self.channel):
            raise DfmsdError("loss.spatial and loss.channel are both off: switch one on, or set loss.alpha to 0")
        if self.selection == "threshold" and self.direction == "random":
            raise DfmsdError("loss.selection 'threshold' has no random direction; use 'topk' or 'sample'")


class DFMSD(Method):
    r"""Dual feature masking and semantic alignment of one level.

    $L = s\,(\alpha\,\mathrm{mean}(R - target)^2 + \beta\,\frac12 \mathrm{mean}\,w (z(X) - z(T))^2)$ with
    $R = w_s G_s(X \cdot M_s) + w_c G_c(X \cdot M_c)$ and $s$ the level's share, see `level_share`.

    Args:
        channels: of the aligned pair.
        options: see `DFMSDOptions`.

    Source: reconstruction, see docs/concepts.md; only the abstract of arXiv 2407.13147 was available.
    """

    Options: ClassVar[type] = DFMSDOptions

    def __init__(self, channels: int, options: DFMSDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        self.terms = tuple(name for name, weight in (("mask", options.alpha), ("sfa", options.beta)) if weight > 0)
        branches = [name for name in ("spatial", "channel") if getattr(options, name)] if options.alpha else []
        self.generation = generation_blocks(branches, channels, options.generation)
        self.fusion = SelfAdjustingFusion() if len(branches) > 1 else None

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give the weighted terms ``mask`` and ``sfa`` of one level.

        Args:
            student: aligned, ``N x C x H x W``, float32 or float64.
            teacher: ``N x C x H x W``, without gradient.
            context: boxes, stride and stage.
        """
        o = self.options
        standard_teacher = functional.standardize(teacher, o.eps)
        weight = None
        if o.focus > 0:
            size = (teacher.shape[2], teacher.shape[3])
            weight = objects.object_focus(context.boxes, context.stride, size, o.focus, teacher.dtype)
        alignment = functional.align_distributions(student, standard_teacher, o.eps, weight)
        self.correlation = alignment.correlation
        share = level_share(teacher, context) if o.levels == "cells" else 1.0
        terms = {}
        if o.alpha > 0:
            error = None
            if o.enhancement in ("error", "error+object") and context.stage > 1:
                error = alignment.difference.abs().mean(dim=1, keepdim=True)
            masks = self.masks(teacher, context, error)
            visible, target = student, standard_teacher
            if o.target == "raw":
                target = teacher
            elif o.target == "teacher":
                mean, scale = functional.channel_statistics(teacher, o.eps)
                visible = (student - mean) / scale
            terms["mask"] = share * o.alpha * self.reconstruction_error(visible, masks, target)
        if o.beta > 0:
            terms["sfa"] = share * o.beta * alignment.error
        return terms

    @torch.no_grad()
    def masks(self, teacher: Tensor, context: LossContext, error: Tensor | None = None) -> dict[str, Tensor]:
        """Choose this step's masks of the branches that are on.

        Args:
            teacher: ``N x C x H x W``.
            context: boxes, stride and stage.
            error: ``N x 1 x H x W``, distance of student and teacher, for ``error``.

        Returns:
            ``spatial``: ``N x 1 x H x W`` and ``channel``: ``N x C x 1 x 1``; 0 = masked.
        """
        o = self.options
        select = partial(masking.select_mask, selection=o.selection, direction=o.direction, threshold=o.threshold)
        masks = {}
        if o.spatial:
            attention, ratio = functional.spatial_attention(teacher, o.tau), o.ratio
            if o.enhancement != "none" and context.stage > 1:
                attention = self._enhance(attention, context, error)
                ratio = masking.stage_ratio(o.ratio, context.stage, o.ratio_step, o.ratio_max)
            masks["spatial"] = select(attention, ratio)
        if o.channel:
            attention = functional.channel_attention(teacher, o.tau)
            masks["channel"] = select(attention, o.channel_ratio)
        return masks

    def _enhance(self, attention: Tensor, context: LossContext, error: Tensor | None) -> Tensor:
        o = self.options
        inside = None
        if o.enhancement in ("object", "error+object"):
            inside = objects.object_cells(context.boxes, context.stride, (attention.shape[2], attention.shape[3]))
        return masking.enhance_attention(attention, error=error, objects=inside, gamma=o.gamma, delta=o.delta)

    def reconstruction_error(self, visible: Tensor, masks: dict[str, Tensor], target: Tensor) -> Tensor:
        """Rebuild the student's masked feature, ``N x C x H x W``, and compare it with the target."""
        rebuilt = [block(visible * masks[name]) for name, block in self.generation.items()]
        if self.fusion is None:
            return F.mse_loss(rebuilt[0], target)
        spatial, channel = rebuilt
        return self.fusion.error(spatial, channel, target)


def level_share(feature: Tensor, context: LossContext) -> float:
    """Number of cells of a feature map, relative to a level of stride 8 of the same input."""
    height, width = context.size
    return feature.shape[2] * feature.shape[3] * REFERENCE_STRIDE**2 / (height * width)
