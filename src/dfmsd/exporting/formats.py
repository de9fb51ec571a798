"""Interface of an export format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.graph import OUTPUTS, DetectionGraph

Run = Callable[[Tensor], RawDetections]
"""Images ``N x 3 x side x side`` -> boxes, scores and labels, as returned by `DetectionGraph`."""


class Format(NamedTuple):
    """How a graph is written to a file, and how the file is run in its own runtime."""

    suffix: str
    packages: tuple[str, ...]
    """Import names of the packages needed for writing and running."""
    extra: str
    """Extra of dfmsd that installs them; empty if none is needed."""
    write: Callable[[DetectionGraph, Path], None]
    read: Callable[[Path, DetectionGraph], Run]
    """Load a file; formats without suppression also use the graph's `PostProcessor`."""
    dynamic: bool = True
    """Whether the file accepts batches of any size; otherwise it accepts one image."""
    whole: bool = True
    """Whether the file includes the suppression."""
    outputs: tuple[str, ...] = OUTPUTS
    infix: str = ""
    """Before the suffix of files that the user does not name."""
    manifest: str = ""
    """Where the file is a folder, as packages of macOS are: name of a file in it."""
    inspect: Callable[[Path, DetectionGraph], str] | None = None
    """Where this machine cannot run the file: compares it with the graph otherwise, and returns what it compared."""


def one_by_one(run: Run) -> Run:
    """Turn a run for single images into one for batches."""

    def run_all(images: Tensor) -> RawDetections:
        boxes, scores, labels = zip(*(run(image.unsqueeze(0)) for image in images), strict=True)
        return torch.cat(boxes), torch.cat(scores), torch.cat(labels)

    return run_all


def takes_batches(form: Format, graph: DetectionGraph) -> bool:
    """Return whether a file of this format and graph accepts batches of any size."""
    return form.dynamic and graph.batches
