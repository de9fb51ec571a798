"""Object sizes of MMDetection's heads, from stand-ins with the attributes of the library's classes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dfmsd.detectors.mmdet.detector import read_sizes

INF = 1e8


def anchors(*sides: float) -> Any:
    """A generator with a square anchor, and one of the same area, on each level."""
    square = torch.tensor([[-0.5, -0.5, 0.5, 0.5], [-1.0, -0.25, 1.0, 0.25]])
    return SimpleNamespace(base_anchors=[side * square for side in sides])


def test_anchors_state_the_sizes() -> None:
    model = SimpleNamespace(bbox_head=SimpleNamespace(prior_generator=anchors(64, 128, 256)))
    bounds = [64 * 2**0.5, 128 * 2**0.5]
    assert read_sizes(model) == [
        (0, pytest.approx(bounds[0])),
        (pytest.approx(bounds[0]), pytest.approx(bounds[1])),
        (pytest.approx(bounds[1]), math.inf),
    ]


def test_ranges_of_a_head_without_anchors_count_unchanged() -> None:
    ranges = ((-1, 64), (64, 128), (128, INF))
    head = SimpleNamespace(prior_generator=SimpleNamespace(), regress_ranges=ranges)
    assert read_sizes(SimpleNamespace(bbox_head=head)) == [(0, 64), (64, 128), (128, math.inf)]


def test_a_head_without_a_rule_by_size_states_none() -> None:
    assert read_sizes(SimpleNamespace(bbox_head=SimpleNamespace(prior_generator=SimpleNamespace()))) is None


class Extractor(nn.Module):
    finest_scale = 56


@pytest.mark.parametrize("extractor", [Extractor(), nn.ModuleList([Extractor(), Extractor()])])
def test_two_stages_lie_between_proposals_and_pooling(extractor: nn.Module) -> None:
    head = SimpleNamespace(prior_generator=anchors(32, 64, 128))
    model = SimpleNamespace(rpn_head=head, roi_head=SimpleNamespace(bbox_roi_extractor=extractor))
    bounds = [math.sqrt(32 * 2**0.5 * 112), math.sqrt(64 * 2**0.5 * 224)]
    sizes = read_sizes(model)
    assert sizes is not None
    assert [upper for _, upper in sizes] == pytest.approx([*bounds, math.inf])


def test_proposals_without_a_pooling_rule_count_alone() -> None:
    sizes = read_sizes(SimpleNamespace(rpn_head=SimpleNamespace(prior_generator=anchors(32, 64))))
    assert sizes is not None
    assert sizes[0][1] == pytest.approx(32 * 2**0.5)
