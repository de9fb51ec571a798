"""Does it matter what is masked, and how? Forms of masking on one pair, with the reconstruction alone in focus.

    python benchmarks/experiments/masks.py configs/digits/compare-unlike.yaml --seeds 0 1

Each form is a run of ``dfmsd compare`` with the same config, teacher and seeds. ``alpha`` is 1, so that the masks have
more to say than with the default. Writes ``benchmarks/results/masks-<data>.json`` after each run and skips the runs
that it has.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from _runs import run_missing
from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd import losses
from dfmsd.comparison.config import CompareConfig
from dfmsd.engine.configfile import read_config
from dfmsd.losses import functional
from dfmsd.losses.dfmsd import DFMSD, DFMSDOptions
from dfmsd.losses.functional.masking import select_mask
from dfmsd.losses.method import LossContext

FORMS = {
    "attention of the teacher": "",
    "unimportant": "direction=unimportant",
    "random": "direction=random",
    "nothing masked": "ratio=0,channel_ratio=0",
    "a quarter masked": "ratio=0.25",
    "three quarters masked": "ratio=0.75",
    "where the student fails": "attention=error",
    "objects": "attention=object",
    "attention of standardized features": "standardize=true",
    "blocks of 3 x 3 by attention": "block=3",
    "blocks of 3 x 3 at random": "block=3,direction=random",
    "error on masked cells only": "scope=masked",
    "error on objects only": "scope=object",
    "share grows from 0.25 to 0.75": "growth=0.25",
    "depthwise 7 x 7 generation": "context=7",
    "blocks and depthwise 7 x 7": "block=3,context=7",
    "no reconstruction": "alpha=0",
}
"""Name -> options of the loss, besides ``alpha``."""


@dataclass(frozen=True)
class MaskOptions(DFMSDOptions):
    """Forms of masking that `DFMSDOptions` does not have.

    Args:
        attention: what the spatial attention is high on: the ``teacher``'s activations, the student's ``error``, or
            an ``object``.
        standardize: standardize the teacher's channels before the attention, so that no channel rules it.
        block: side of the square groups of cells that are masked together.
        scope: cells whose error counts.
        growth: share by which ``ratio`` starts lower and ends higher over the run.
        context: size of an additional depthwise convolution in front of the generation of masked positions; 1: none.
        steps: steps of the run, for ``growth``.
    """

    alpha: float = 1.0
    attention: Literal["teacher", "error", "object"] = "teacher"
    standardize: bool = False
    block: int = 1
    scope: Literal["all", "masked", "object"] = "all"
    growth: float = 0.0
    context: int = 1
    steps: int = 675


@losses.register("masks")
class Masks(DFMSD):
    """DFMSD with other forms of masking; the options are `MaskOptions`."""

    Options: ClassVar[type] = MaskOptions
    options: MaskOptions

    def __init__(self, channels: int, options: MaskOptions) -> None:
        super().__init__(channels, options)
        self.step = 0
        if options.context > 1 and options.alpha > 0:
            wide = nn.Conv2d(channels, channels, options.context, padding=options.context // 2, groups=channels)
            self.generation["spatial"] = nn.Sequential(wide, self.generation["spatial"])

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the terms, and keep which cells are objects'."""
        self.step += self.training
        self.objects = functional.object_cells(
            self.require(context.boxes, "boxes"), context.stride, (teacher.shape[2], teacher.shape[3])
        ).to(teacher)
        return super().forward(student, teacher, context)

    @torch.no_grad()
    def masks(self, teacher: Tensor, context: LossContext, difference: Tensor) -> dict[str, Tensor]:
        """Choose the masks of one step."""
        o = self.options
        feature = functional.standardize(teacher) if o.standardize else teacher
        if o.attention == "error":
            feature = difference
        attention = functional.spatial_attention(feature, o.tau)
        if o.attention == "object":
            attention = attention * (0.01 + self.objects)
        ratio = o.ratio + o.growth * (2 * min(self.step / o.steps, 1.0) - 1)
        height, width = attention.shape[2:]
        if o.block > 1:
            attention = F.avg_pool2d(attention, o.block, ceil_mode=True, count_include_pad=False)
        spatial = select_mask(attention, ratio, direction=o.direction)
        if o.block > 1:
            spatial = F.interpolate(spatial, scale_factor=o.block, mode="nearest")[..., :height, :width]
        channel = select_mask(functional.channel_attention(feature, o.tau), o.channel_ratio, direction=o.direction)
        return {"spatial": spatial, "channel": channel}

    def reconstruction_error(self, visible: Tensor, masks: dict[str, Tensor], target: Tensor) -> Tensor:
        """Generate the target from the masked student; return the mean squared error over the scope."""
        if self.options.scope == "all":
            return super().reconstruction_error(visible, masks, target)
        assert self.fusion is not None
        parts = [self.generation[name](visible * mask) for name, mask in masks.items()]
        error = (self.fusion(*parts) - target).square()
        weight = 1 - masks["spatial"] if self.options.scope == "masked" else self.objects
        return (error * weight).sum() / (weight.sum() * error.shape[1]).clamp_min(1)


def main() -> None:
    """Run what is missing and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--teachers", default="T1", help="as in the names of methods")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    config = read_config(CompareConfig, options.config)
    methods = {form: f"masks[{FORMS[form]}]@{options.teachers}".replace("[]", "") for form in options.forms}
    run_missing(config, "masks", [(seed, form, method) for seed in options.seeds for form, method in methods.items()])


if __name__ == "__main__":
    main()
