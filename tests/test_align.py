from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dfmsd.align import Align, LevelPair, format_levels, pair_levels
from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

ONE_STAGE = [LevelSpec(f"p{level}", 64, 2**level) for level in range(3, 8)]  # strides 8..128
TWO_STAGE = [LevelSpec(str(level), 256, 2 ** (level + 2)) for level in range(5)]  # strides 4..64


def test_one_stage_and_two_stage_pyramids_share_the_strides_8_to_64() -> None:
    pairs = pair_levels(ONE_STAGE, TWO_STAGE)
    assert [(pair.student.name, pair.teacher.name) for pair in pairs] == [
        ("p3", "1"),
        ("p4", "2"),
        ("p5", "3"),
        ("p6", "4"),
    ]
    assert all(pair.student.stride == pair.teacher.stride for pair in pairs)
    assert [(pair.student.stride, pair.teacher.stride) for pair in pair_levels(TWO_STAGE, ONE_STAGE)] == [
        (stride, stride) for stride in (8, 16, 32, 64)
    ]


def test_pairing_by_index_ignores_the_strides() -> None:
    pairs = pair_levels(ONE_STAGE, TWO_STAGE[:4], "index")
    assert [(pair.student.stride, pair.teacher.stride) for pair in pairs] == [(8, 4), (16, 8), (32, 16), (64, 32)]


@pytest.mark.parametrize("pairing", ["stride", "index"])
def test_fewer_than_two_pairs_are_refused_with_both_level_tables_in_one_line(pairing: str) -> None:
    student, teacher = [LevelSpec("p5", 96, 32)], [LevelSpec("c4", 512, 16), LevelSpec("c5", 2048, 32)]
    with pytest.raises(DfmsdError) as caught:
        pair_levels(student, teacher, pairing)
    message = str(caught.value)
    assert "share 1 pyramid level(s)" in message
    assert pairing in message
    assert format_levels(student) == "p5 /32 x96"
    assert format_levels(student) in message
    assert "c4 /16 x512, c5 /32 x2048" in message
    assert "\n" not in message


def test_no_common_stride_is_refused_and_index_pairing_helps() -> None:
    student, teacher = ONE_STAGE[:2], [LevelSpec("a", 8, 2), LevelSpec("b", 8, 4)]
    with pytest.raises(DfmsdError, match=r"share 0 pyramid.*loss\.pairing: index"):
        pair_levels(student, teacher)
    assert len(pair_levels(student, teacher, "index")) == 2


def test_equal_channels_and_sizes_need_no_layer_and_change_nothing() -> None:
    align = Align(LevelPair(LevelSpec("s", 3, 8), LevelSpec("t", 3, 8)))
    feature = torch.randn(2, 3, 4, 5)
    assert not list(align.parameters())
    assert align(feature, (4, 5)) is feature


def test_other_channels_are_projected_by_a_pointwise_convolution() -> None:
    align = Align(LevelPair(LevelSpec("s", 3, 8), LevelSpec("t", 5, 8)))
    feature = torch.randn(2, 3, 4, 6)
    assert isinstance(align.project, nn.Conv2d)
    weight, bias = align.project.weight[:, :, 0, 0], align.project.bias
    assert_close(align(feature, (4, 6)), torch.einsum("oc,nchw->nohw", weight, feature) + bias.view(1, -1, 1, 1))


def test_other_sizes_are_resized_bilinearly() -> None:
    align = Align(LevelPair(LevelSpec("s", 1, 16), LevelSpec("t", 1, 8)))
    resized = align(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
    assert_close(resized, torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))  # cell centres at -1/4, 1/4, 3/4, 5/4


def test_channels_and_sizes_together() -> None:
    align = Align(LevelPair(LevelSpec("s", 2, 8), LevelSpec("t", 6, 16)))
    assert align(torch.randn(1, 2, 8, 10), (4, 5)).shape == (1, 6, 4, 5)
