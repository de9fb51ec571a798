"""FLOPs and CPU latency of detection in one image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch

from dfmsd.detectors.base import Detector
from dfmsd.estimation.flops import count
from dfmsd.estimation.timing import time_in_turns
from dfmsd.evaluation.evaluate import detect
from dfmsd.types import Batch

SECONDS = 2.0
"""Timing budget per detector."""


class InferenceCost(NamedTuple):
    """Cost of detection in one image, from pixels to boxes."""

    flops: int
    """Of convolutions and matrix products, 2 per multiply-add."""
    latency: float
    """Median in milliseconds."""


def inference_costs(
    detectors: Mapping[str, Detector], batches: Mapping[str, Batch], seconds: float = SECONDS
) -> dict[str, InferenceCost]:
    """Measure detectors in turns, so that a slow phase of the machine affects all of them equally.

    Args:
        detectors: on the CPU.
        batches: for each of them a batch of one image.
        seconds: timing budget per detector.
    """
    calls = {name: partial(detect, detector, batches[name]) for name, detector in detectors.items()}
    with torch.no_grad():
        flops = {name: count(call, detectors[name]).forward for name, call in calls.items()}
    ms = time_in_turns(calls, seconds * len(calls))
    return {name: InferenceCost(flops[name], ms[name]) for name in calls}
