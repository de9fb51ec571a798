"""Tables of the paired levels, with the object sizes that each is responsible for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.table import Table
from torch import Tensor

from dfmsd.losses import Criterion, CriterionSum
from dfmsd.losses.align import Align, LevelPair
from dfmsd.types import LevelSpec


class PairedLevels(NamedTuple):
    """A pair of levels in a stage."""

    stage: str
    """Stage and teacher."""
    pair: LevelPair
    share: float | None
    """Share of the training boxes with a size in the range of the student's level, 0..1; None if either is unknown."""
    resized: str | None
    """``student`` or ``teacher``; None if the strides agree."""


def paired_levels(stage: str, criterion: Criterion | CriterionSum, box_sizes: Tensor) -> list[PairedLevels]:
    """List the paired levels of a loss, each once.

    Args:
        stage: stage and teacher.
        criterion: the loss.
        box_sizes: sizes of the training boxes in pixels of the input, ``M``.
    """
    rows = []
    for pair, align in zip(criterion.pairs, criterion.align, strict=True):
        assert isinstance(align, Align)
        resized = None if pair.student.stride == pair.teacher.stride else align.resize
        rows.append(PairedLevels(stage, pair, _share(pair.student, box_sizes), resized))
    return list(dict.fromkeys(rows))  # several methods of a sum share pairs


def note_single_pair(stage: str, pairs: Sequence[LevelPair]) -> list[str]:
    """Return a line about what a single pair of levels leaves out; none if there are more pairs.

    Args:
        stage: stage and teacher.
        pairs: the paired levels, each once.
    """
    if len(pairs) != 1:
        return []
    return [
        f"{stage}: one pair of levels only, {format_level(pairs[0].student)} <- {format_level(pairs[0].teacher)}: "
        "the student's other levels learn from it only through the layers that they share"
    ]


def pairing_tables(rows: Iterable[PairedLevels]) -> Iterator[Table]:
    """Yield a table for the terminal for each stage and teacher; sizes are in pixels of the input."""
    for stage, group in groupby(rows, key=lambda row: row.stage):
        table = Table("student <- teacher", "student px", "teacher px", "boxes", "resized", title=stage)
        for row in group:
            table.add_row(
                f"{format_level(row.pair.student)} <- {format_level(row.pair.teacher)}",
                _format_sizes(row.pair.student),
                _format_sizes(row.pair.teacher),
                "-" if row.share is None else f"{row.share:.0%}",
                row.resized or "-",
            )
        yield table


def format_level(level: LevelSpec) -> str:
    """Format a level as its name, stride and channels."""
    return f"{level.name} (/{level.stride:.3g}, {level.channels})"


def _format_sizes(level: LevelSpec) -> str:
    if level.sizes is None:
        return "-"
    lower, upper = level.sizes
    return f"{lower:.0f} to {upper:.0f}" if math.isfinite(upper) else f"from {lower:.0f}"


def _share(level: LevelSpec, box_sizes: Tensor) -> float | None:
    if level.sizes is None or not len(box_sizes):
        return None
    lower, upper = level.sizes
    return float(((box_sizes >= lower) & (box_sizes < upper)).float().mean())
