"""What a loss looks at in one image: attention, masks and errors on every level, as arrays."""

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
from dfmsd.visualization.layers import Lesson

Map = NDArray[np.float32]
SEED = 0
"""Of masks that are drawn at random."""


@dataclass(frozen=True)
class LevelView:
    """One pair of levels; maps are ``H x W``, None where they cannot be had.

    Attributes:
        pair: the two levels.
        teacher: the teacher's spatial attention, of mean 1.
        student: the student's own spatial attention.
        channels: the teacher's channel attention, ``C``, of mean 1.
        masked_channels: bool, ``C``: which of them are masked.
        before: the spatial mask of the first stage, 0 = masked.
        after: that of this stage, strengthened by masking enhancement.
        distance: of the student's standardised features to the teacher's, mean over the channels.
        rebuilt: squared error of the reconstruction, mean over the channels.
        pearson: correlation of the two, -1..1.
    """

    pair: LevelPair
    teacher: Map
    student: Map
    channels: Map
    masked_channels: NDArray[np.bool_] | None = None
    before: Map | None = None
    after: Map | None = None
    distance: Map | None = None
    rebuilt: Map | None = None
    pearson: float | None = None


@torch.no_grad()
def look(
    lesson: Lesson,
    student: FeaturePyramid,
    teacher: FeaturePyramid,
    boxes: Tensor,
    size: tuple[int, int],
) -> list[LevelView]:
    """Look at each paired level of one image.

    Args:
        lesson: stage and loss.
        student: its pyramid, ``1 x C x H x W``.
        teacher: its pyramid.
        boxes: ``M x 4``, xyxy in pixels of the padded input: where masking enhancement sees objects.
        size: height and width of the padded input.
    """
    criterion = lesson.criterion
    methods: dict[LevelPair, tuple[nn.Module, nn.Module]] = {}
    for pair, align, method in zip(criterion.pairs, criterion.align, criterion.methods, strict=True):
        if pair not in methods or isinstance(method, DFMSD):  # the one of a sum that has masks to show
            methods[pair] = align, method
    views = []
    for pair, (align, method) in methods.items():
        assert isinstance(align, Align)
        own = functional.full_precision(student[pair.student.name])
        theirs = functional.full_precision(teacher[pair.teacher.name])
        context = LossContext([boxes], size, pair.stride(align.resize), lesson.stage)
        views.append(_look_at(pair, align, method, own, theirs, context, lesson.trained))
    return views


def _look_at(
    pair: LevelPair, align: Align, method: nn.Module, own: Tensor, theirs: Tensor, context: LossContext, trained: bool
) -> LevelView:
    options: Any = getattr(method, "options", None)
    tau, eps = getattr(options, "tau", DFMSDOptions.tau), getattr(options, "eps", DFMSDOptions.eps)
    known: dict[str, Any] = {}
    target = resize_teacher(theirs, own, align.resize)
    if trained or isinstance(align.project, nn.Identity):
        aligned, target = align(own, theirs)
        alignment = functional.align_distributions(aligned, functional.standardize(target, eps), eps)
        error = alignment.difference.abs().mean(dim=1, keepdim=True)
        known["distance"] = _map(error)
        if target.shape[-2] * target.shape[-1] > 1:  # a single cell does not vary
            known["pearson"] = float(alignment.correlation)
        if isinstance(method, DFMSD) and options.alpha > 0:
            known |= _masks(method, target, context, error)
            if trained:
                known["rebuilt"] = _rebuilt(method, aligned, target, context)
    channels = functional.channel_attention(target, tau)
    return LevelView(
        pair,
        _map(functional.spatial_attention(target, tau)),
        _map(functional.spatial_attention(own, tau)),
        channels.flatten().numpy(),
        **known,
    )


def _masks(method: DFMSD, target: Tensor, context: LossContext, error: Tensor) -> dict[str, Any]:
    """Give the masks of the first stage and of this one."""
    first = _seeded(lambda: method.masks(target, context._replace(stage=1), error))
    known: dict[str, Any] = {}
    if "channel" in first:
        known["masked_channels"] = (first["channel"] == 0).flatten().numpy()
    if "spatial" in first:
        known["before"] = _map(first["spatial"])
        known["after"] = _map(_seeded(lambda: method.masks(target, context, error))["spatial"])
    return known


def _rebuilt(method: DFMSD, aligned: Tensor, target: Tensor, context: LossContext) -> Map:
    """Run the method, and compare what its blocks rebuild with what they should have."""
    parts: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, args, output: parts.append(output))
        for block in method.generation.values()
    ]
    try:
        _seeded(lambda: method(aligned, target, context))
    finally:
        for hook in hooks:
            hook.remove()
    rebuilt = parts[0] if method.fusion is None else method.fusion(*parts)
    wanted = target if method.options.target == "raw" else functional.standardize(target, method.options.eps)
    return _map((rebuilt - wanted).square().mean(dim=1, keepdim=True))


def _seeded(run: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return run()


def _map(value: Tensor) -> Map:
    array: Map = value[0, 0].float().numpy()
    return array


def mean_pearson(views: Sequence[LevelView]) -> float | None:
    """Average the correlation over the levels; none where it is not known."""
    known = [view.pearson for view in views if view.pearson is not None]
    return sum(known) / len(known) if known else None
