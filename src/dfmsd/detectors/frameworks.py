"""Other libraries whose detectors dfmsd can use, by the prefix of their references."""

from __future__ import annotations

from typing import NamedTuple

HUGGING_FACE = "hf:"
MMDET = "mmdet:"
ULTRALYTICS = "ultralytics:"
TORCHVISION = "torchvision:"
"""Prefix of torchvision's detectors with weights of the user's own; their adapter is part of dfmsd."""


class Framework(NamedTuple):
    """A package of dfmsd that adapts another library's detectors."""

    package: str
    """Dotted name; the package exports ``load``, ``build`` and ``restore``, see `dfmsd.detectors.registry.Adapter`."""
    usage: str
    """Form of a reference, for error messages."""


FRAMEWORKS = {
    HUGGING_FACE: Framework("dfmsd.detectors.huggingface", "hf:<folder or id>"),
    MMDET: Framework("dfmsd.detectors.mmdet", "mmdet:<config>,<checkpoint>"),
    ULTRALYTICS: Framework("dfmsd.detectors.ultralytics", "ultralytics:<best.pt or model.yaml>"),
}
"""Prefix -> framework."""
