"""Detectors with many detections, and an export format that takes no time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import nn

from dfmsd.detectors import Detector, DetectorConfig, build_detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting.choice import FORMATS
from dfmsd.exporting.decoders import RawDetections
from dfmsd.exporting.formats import Format, Run
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.utils.extras import check_extra

OWN = ("fcos", "retinanet", "gfl", "ssdlite", "faster_rcnn")


def need(name: str) -> None:
    """Skip the test where what a format needs is not installed."""
    try:
        check_extra(f"--format {name}", FORMATS[name].packages, FORMATS[name].extra)
    except DfmsdError as error:
        pytest.skip(str(error))


def randomize(detector: Detector) -> Detector:
    """Draw weights that result in many detections with different scores."""
    generator = torch.Generator().manual_seed(3)
    for parameter in detector.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(1.5 / parameter[0].numel()) ** 0.5, generator=generator)
    return detector.eval()


def tiny(arch: str, class_names: Iterable[str] = ("a", "b", "c")) -> Detector:
    config = DetectorConfig(arch, TINY_BACKBONE, fpn_channels=16, head_convs=1)
    return randomize(build_detector(config, tuple(class_names)))


def eagerly(shift: float) -> Format:
    """Return a fast format whose files are run by the graph itself, with shifted scores."""

    def read(file: Path, graph: DetectionGraph) -> Run:
        assert file.read_text() == "written"

        def run(images: torch.Tensor) -> RawDetections:
            with torch.no_grad():
                boxes, scores, labels = graph(images)
            return boxes, torch.where(scores > 0, scores + shift, 0), labels

        return run

    return Format(".pt2", (), "", lambda _, file: file.write_text("written"), read)
