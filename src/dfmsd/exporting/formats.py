"""What an export format is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.graph import DetectionGraph

Run = Callable[[Tensor], RawDetections]
"""Images ``N x 3 x side x side`` -> boxes, scores and labels, as `DetectionGraph` gives them."""


class Format(NamedTuple):
    """How a graph becomes a file, and how that file is run without dfmsd."""

    suffix: str
    packages: tuple[str, ...]
    """That writing and running need, by the names that they are imported by."""
    extra: str
    """Of dfmsd, which installs them; empty where there are none."""
    write: Callable[[DetectionGraph, Path], None]
    read: Callable[[Path, DetectionGraph], Run]
    """Load a file; of the graph at most the `PostProcessor` is used, where the file ends before it."""
    dynamic: bool = True
    """Whether the file takes batches of any size, otherwise of one image."""
    whole: bool = True
    """Whether the suppression is inside."""


def one_by_one(run: Run) -> Run:
    """Give a run that takes batches, of one whose file takes one image."""

    def run_all(images: Tensor) -> RawDetections:
        boxes, scores, labels = zip(*(run(image.unsqueeze(0)) for image in images), strict=True)
        return torch.cat(boxes), torch.cat(scores), torch.cat(labels)

    return run_all
