"""What a detection costs on this machine's CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch

from dfmsd.detectors.base import Detector
from dfmsd.estimation.calibrate import calibrate
from dfmsd.estimation.flops import count
from dfmsd.evaluation.evaluate import detect
from dfmsd.types import Batch

SECONDS = 2.0
"""For each detector."""


class DetectionCost(NamedTuple):
    """Cost of the detection in one image: the whole way from pixels to boxes."""

    flops: int
    """Of convolutions and matrix products, 2 per multiply-add."""
    latency: float
    """Median in ms."""


def detection_costs(
    detectors: Mapping[str, Detector], batch: Batch, seconds: float = SECONDS
) -> dict[str, DetectionCost]:
    """Measure detectors in turns, so that a slow phase of the machine meets all alike.

    Args:
        detectors: on the CPU.
        batch: one image.
        seconds: for each of them.
    """
    calls = {name: partial(detect, detector, batch) for name, detector in detectors.items()}
    with torch.no_grad():
        flops = {name: count(call, detectors[name]).forward for name, call in calls.items()}
    ms = calibrate(calls, seconds * len(calls))
    return {name: DetectionCost(flops[name], ms[name]) for name in calls}
