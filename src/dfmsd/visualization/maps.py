"""Attention, mask and error maps of a distillation loss on one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfmsd.losses import DFMSD, LossContext, functional
from dfmsd.losses.align import Align, LevelPair, resize_teacher
from dfmsd.losses.dfmsd import DFMSDOptions
from dfmsd.types import FeaturePyramid
from dfmsd.visualization.criteria import StageCriterion

Map = NDArray[np.float32]
SEED = 0
"""Seed of randomly drawn masks."""


@dataclass(frozen=True)
class LevelMaps:
    """Maps of one pair of levels, ``H x W``; None if unavailable.

    Attributes:
        pair: student and teacher level.
        teacher: spatial attention of the teacher, mean 1.
        student: spatial attention of the student, mean 1.
        channels: channel attention of the teacher, ``C``, mean 1.
        masked_channels: bool, ``C``: which channels are masked.
        mask: spatial mask without enhancement, as in stage 1; 0 = masked.
        enhanced_mask: spatial mask of this stage, with masking enhancement.
        distance: absolute difference of the standardized features, mean over channels.
        reconstruction_error: squared error of the reconstruction, mean over channels.
        pearson: correlation of student and teacher features, -1..1.
    """

    pair: LevelPair
    teacher: Map
    student: Map
    channels: Map
    masked_channels: NDArray[np.bool_] | None = None
    mask: Map | None = None
    enhanced_mask: Map | None = None
    distance: Map | None = None
    reconstruction_error: Map | None = None
    pearson: float | None = None


@torch.no_grad()
def level_maps(
    stage: StageCriterion,
    student: FeaturePyramid,
    teacher: FeaturePyramid,
    boxes: Tensor,
    size: tuple[int, int],
) -> list[LevelMaps]:
    """Compute the maps of every paired level for one image.

    Args:
        stage: stage and loss.
        student: its pyramid, ``1 x C x H x W`` per level.
        teacher: its pyramid.
        boxes: ``M x 4``, xyxy in pixels of the padded input; objects for masking enhancement.
        size: height and width of the padded input.
    """
    criterion = stage.criterion
    teacher = teacher if criterion.basis is None else criterion.basis(teacher)
    methods: dict[LevelPair, tuple[nn.Module, nn.Module]] = {}
    for pair, align, method in zip(criterion.pairs, criterion.align, criterion.methods, strict=True):
        if pair not in methods or isinstance(method, DFMSD):  # of several losses, prefer the one with masks
            methods[pair] = align, method
    maps = []
    for pair, (align, method) in methods.items():
        assert isinstance(align, Align)
        student_feature = functional.full_precision(student[pair.student.name])
        teacher_feature = functional.full_precision(teacher[pair.teacher.name])
        context = LossContext([boxes], size, pair.stride(align.resize), stage.stage)
        maps.append(_maps_of_pair(pair, align, method, student_feature, teacher_feature, context, stage.trained))
    return maps


def mean_pearson(maps: Sequence[LevelMaps]) -> float | None:
    """Average the correlation over the levels; None if it is unknown."""
    known = [level.pearson for level in maps if level.pearson is not None]
    return sum(known) / len(known) if known else None


def _maps_of_pair(
    pair: LevelPair,
    align: Align,
    method: nn.Module,
    student: Tensor,
    teacher: Tensor,
    context: LossContext,
    trained: bool,
) -> LevelMaps:
    options: Any = getattr(method, "options", None)
    tau, eps = getattr(options, "tau", DFMSDOptions.tau), getattr(options, "eps", DFMSDOptions.eps)
    known: dict[str, Any] = {}
    target = resize_teacher(teacher, student, align.resize)
    alike = student.shape[1] == teacher.shape[1]
    if alike if isinstance(align.project, nn.Identity) else trained:
        aligned, target = align(student, teacher)
        alignment = functional.align_distributions(aligned, functional.standardize(target, eps), eps)
        known["distance"] = _to_map(alignment.difference.abs().mean(dim=1, keepdim=True))
        if target.shape[-2] * target.shape[-1] > 1:  # a single cell has no variance
            known["pearson"] = float(alignment.correlation)
        if isinstance(method, DFMSD) and options.alpha > 0:
            known |= _masks(method, target, context, alignment.difference)
            if trained:
                known["reconstruction_error"] = _reconstruction_error(method, aligned, target, context)
    return LevelMaps(
        pair,
        _to_map(functional.spatial_attention(functional.per_magnitude(target), tau)),
        _to_map(functional.spatial_attention(functional.per_magnitude(student), tau)),
        functional.channel_attention(target, tau).flatten().numpy(),
        **known,
    )


def _masks(method: DFMSD, target: Tensor, context: LossContext, difference: Tensor) -> dict[str, Any]:
    """Return the masks of stage 1 and of this stage."""
    first = _seeded(lambda: method.masks(target, context._replace(stage=1), difference))
    known: dict[str, Any] = {}
    if "channel" in first:
        known["masked_channels"] = (first["channel"] == 0).flatten().numpy()
    if "spatial" in first:
        known["mask"] = _to_map(first["spatial"])
        known["enhanced_mask"] = _to_map(_seeded(lambda: method.masks(target, context, difference))["spatial"])
    return known


def _reconstruction_error(method: DFMSD, aligned: Tensor, target: Tensor, context: LossContext) -> Map:
    """Run the method and compare the output of its generation blocks with their target."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
        for block in method.generation.values()
    ]
    try:
        _seeded(lambda: method(aligned, target, context))
    finally:
        for hook in hooks:
            hook.remove()
    reconstruction = outputs[0] if method.fusion is None else method.fusion(*outputs)
    expected = functional.standardize(target, method.options.eps)
    return _to_map((reconstruction - expected).square().mean(dim=1, keepdim=True))


def _seeded(run: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return run()


def _to_map(value: Tensor) -> Map:
    array: Map = value[0, 0].float().numpy()
    return array
