from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from dfmsd.errors import DfmsdError
from dfmsd.losses import build
from dfmsd.losses.align import STRIDE_TOLERANCE, Align, LevelPair, Pairing, format_levels, pair_levels
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


SSD300 = [LevelSpec(f"s{stride}", 8, stride) for stride in (8, 16, 32, 64, 100, 300)]


def strides(student: list[LevelSpec], teacher: list[LevelSpec]) -> list[tuple[int, int]]:
    return [(pair.student.stride, pair.teacher.stride) for pair in pair_levels(student, teacher)]


def of(*values: int) -> list[LevelSpec]:
    return [LevelSpec(f"{stride}.{index}", 8, stride) for index, stride in enumerate(values)]


def test_an_odd_stride_is_paired_with_the_nearest() -> None:
    assert strides(SSD300, ONE_STAGE) == [(8, 8), (16, 16), (32, 32), (64, 64), (100, 128)]
    assert strides(ONE_STAGE, SSD300) == [(8, 8), (16, 16), (32, 32), (64, 64), (128, 100)]
    assert strides(of(14, 30), of(8, 16, 32, 64)) == [(14, 16), (30, 32)]


def test_exact_strides_come_before_near_ones_and_nearer_before_farther() -> None:
    assert strides(of(16, 18, 32), of(16, 32)) == [(16, 16), (32, 32)]
    assert strides(of(16, 20, 22), of(16, 23)) == [(16, 16), (22, 23)]  # 20 is near too, but farther
    assert strides(of(16, 20), of(16, 18, 25)) == [(16, 16), (20, 18)]


def test_no_two_powers_of_two_are_near() -> None:
    assert strides(of(8, 16, 32), of(8, 32, 64)) == [(8, 8), (32, 32)]


def names(student: list[LevelSpec], teacher: list[LevelSpec]) -> list[tuple[str, str]]:
    return [(pair.student.name, pair.teacher.name) for pair in pair_levels(student, teacher)]


def test_levels_of_equal_stride_are_paired_in_order() -> None:
    levels = of(32, 32, 64)
    assert names(levels, levels) == [("32.0", "32.0"), ("32.1", "32.1"), ("64.2", "64.2")]
    equal = [LevelSpec("p", 8, 32)] * 2
    assert [pair.teacher for pair in pair_levels(equal, levels)] == levels[:2]


def test_levels_beyond_the_teachers_of_that_stride_learn_from_its_last() -> None:
    assert names(of(32, 32, 32), of(32, 32)) == [("32.0", "32.0"), ("32.1", "32.1"), ("32.2", "32.1")]
    assert names(of(32, 64), of(32, 32, 64)) == [("32.0", "32.0"), ("64.1", "64.2")]


def test_levels_of_equal_near_strides_are_paired_in_order() -> None:
    assert names(of(30, 30, 64), of(32, 32, 64)) == [("30.0", "32.0"), ("30.1", "32.1"), ("64.2", "64.2")]


@given(levels=st.lists(st.integers(1, 600), min_size=2, max_size=7))
def test_every_level_of_a_pyramid_is_paired_with_its_twin(levels: list[int]) -> None:
    pyramid = of(*levels)
    assert names(pyramid, pyramid) == [(level.name, level.name) for level in pyramid]


SOME = st.lists(st.integers(1, 600), min_size=1, max_size=7).map(lambda values: of(*sorted(values)))


@given(SOME, SOME)
def test_exact_pairs_always_win_and_none_lies_outside_the_tolerance(
    student: list[LevelSpec], teacher: list[LevelSpec]
) -> None:
    common = {level.stride for level in student} & {level.stride for level in teacher}
    try:
        pairs = pair_levels(student, teacher)
    except DfmsdError:
        assert sum(level.stride in common for level in student) < 2
        return
    taught = {pair.student: pair.teacher for pair in pairs}
    assert list(taught) == [level for level in student if level in taught]  # in order, each once
    near = []
    for level in student:
        if level.stride in common:
            assert taught[level].stride == level.stride
        elif level in taught:
            near.append(taught[level])
            assert 1 / STRIDE_TOLERANCE <= near[-1].stride / level.stride <= STRIDE_TOLERANCE
    assert len(set(near)) == len(near)
    assert not {level.stride for level in near} & common
    for level in student:  # an unpaired level has no free neighbor
        free = [t.stride for t in teacher if t.stride not in common and t not in near]
        if level not in taught:
            assert not any(1 / STRIDE_TOLERANCE <= s / level.stride <= STRIDE_TOLERANCE for s in free)


def test_pairing_by_index_ignores_the_strides() -> None:
    pairs = pair_levels(ONE_STAGE, TWO_STAGE[:4], "index")
    assert [(pair.student.stride, pair.teacher.stride) for pair in pairs] == [(8, 4), (16, 8), (32, 16), (64, 32)]


def test_fewer_than_two_pairs_are_refused_with_both_level_tables_in_one_line() -> None:
    student = [LevelSpec("p5", 96, 32), LevelSpec("p6", 96, 64)]
    teacher = [LevelSpec("c4", 512, 16), LevelSpec("c5", 2048, 32)]
    with pytest.raises(DfmsdError) as caught:
        pair_levels(student, teacher, "stride")
    message = str(caught.value)
    assert "share 1 pyramid level(s) by stride, at least 2 must be shared" in message
    assert format_levels(student) == "p5 /32 x96, p6 /64 x96"
    assert format_levels(student) in message
    assert "c4 /16 x512, c5 /32 x2048" in message
    assert "\n" not in message


@pytest.mark.parametrize("pairing", ["auto", "stride", {"p5": "only"}])
@pytest.mark.parametrize("sizes", [None, (0.0, math.inf)])
def test_one_pair_is_enough_where_a_detector_has_one_level(pairing: Pairing, sizes: tuple[float, float] | None) -> None:
    only = [LevelSpec("only", 8, 32, sizes)]
    ((student, teacher),) = pair_levels(ONE_STAGE, only, pairing)
    assert (student.name, teacher.name) == ("p5", "only")
    ((student, teacher),) = pair_levels(only, ONE_STAGE, "stride")
    assert (student.name, teacher.name) == ("only", "p5")


def test_a_single_level_of_an_unknown_stride_is_refused() -> None:
    with pytest.raises(DfmsdError, match=r"share 0 pyramid level\(s\) by stride, at least 1 must be shared"):
        pair_levels(ONE_STAGE, [LevelSpec("only", 8, 4)], "stride")


def test_no_common_stride_is_refused_and_index_pairing_helps() -> None:
    student, teacher = ONE_STAGE[:2], [LevelSpec("a", 8, 2), LevelSpec("b", 8, 4)]
    with pytest.raises(DfmsdError, match=r"share 0 pyramid.*loss\.pairing: index"):
        pair_levels(student, teacher)
    assert len(pair_levels(student, teacher, "index")) == 2


def sized(names: str, *bounds: float) -> list[LevelSpec]:
    """Levels of increasing stride and the ranges between bounds."""
    ranges = pairwise([0.0, *bounds, math.inf])
    return [LevelSpec(name, 8, 2 ** int(name[1:]), sizes) for name, sizes in zip(names.split(), ranges, strict=True)]


FCOS = sized("p3 p4 p5 p6 p7", 64, 128, 256, 512)
RETINANET = sized("p3 p4 p5 p6 p7", 57, 114, 228, 456)
FASTER_RCNN = sized("p2 p3 p4 p5 p6", 71, 142, 285, 570)
SSDLITE = sized("p4 p5 p6 p7 p8 p9", 97, 146, 195, 243, 291)
BY_INDEX = {"p3": "p2", "p4": "p3", "p5": "p4", "p6": "p5", "p7": "p6"}
BY_NAME = {name: name for name in BY_INDEX}


def paired(student: list[LevelSpec], teacher: list[LevelSpec], pairing: Pairing) -> dict[str, str]:
    return {pair.student.name: pair.teacher.name for pair in pair_levels(student, teacher, pairing)}


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        pytest.param(FCOS, FASTER_RCNN, BY_INDEX, id="fcos from faster_rcnn"),
        pytest.param(RETINANET, FASTER_RCNN, BY_INDEX, id="retinanet from faster_rcnn"),
        pytest.param(FASTER_RCNN, FCOS, {p: q for q, p in BY_INDEX.items()}, id="faster_rcnn from fcos"),
        pytest.param(FCOS, FCOS, BY_NAME, id="fcos from fcos"),
        pytest.param(RETINANET, FCOS, BY_NAME, id="retinanet from fcos"),
        # SSDLite's P7, 195..243, lies within FCOS's P5, 128..256, of which P6, 146..195, has more
        pytest.param(
            SSDLITE, FCOS, {"p4": "p3", "p5": "p4", "p6": "p5", "p8": "p6", "p9": "p7"}, id="ssdlite from fcos"
        ),
        pytest.param(
            FCOS, SSDLITE, {"p3": "p4", "p4": "p5", "p5": "p6", "p6": "p8", "p7": "p9"}, id="fcos from ssdlite"
        ),
    ],
)
def test_automatic_pairing_follows_the_object_sizes(
    student: list[LevelSpec], teacher: list[LevelSpec], expected: dict[str, str]
) -> None:
    assert paired(student, teacher, "auto") == expected


def test_automatic_pairing_is_by_stride_if_any_level_states_no_sizes() -> None:
    for student, teacher in ((ONE_STAGE, FASTER_RCNN), (FCOS, TWO_STAGE), (FCOS, [*FASTER_RCNN[:4], TWO_STAGE[4]])):
        assert pair_levels(student, teacher, "auto") == pair_levels(student, teacher, "stride")


def test_levels_without_common_sizes_are_paired_by_stride() -> None:
    small = [LevelSpec("p2", 8, 4, (0.0, 8.0)), LevelSpec("p3", 8, 8, (8.0, 16.0))]
    large = [LevelSpec("p2", 8, 4, (16.0, 32.0)), LevelSpec("p3", 8, 8, (32.0, math.inf))]
    assert paired(small, large, "auto") == {"p2": "p2", "p3": "p3"}
    with pytest.raises(DfmsdError, match=r"share 1 pyramid level\(s\) by object size or stride"):
        pair_levels(small, [large[0], LevelSpec("p6", 8, 64, (32.0, math.inf))], "auto")


def test_a_mapping_states_the_pairs_whatever_its_order() -> None:
    assert paired(FCOS, FASTER_RCNN, {"p5": "p3", "p3": "p2"}) == {"p3": "p2", "p5": "p3"}
    assert paired(ONE_STAGE, TWO_STAGE, {"p3": "1", "p4": "0"}) == {"p3": "1", "p4": "0"}  # even out of order


@pytest.mark.parametrize(
    ("pairing", "message"),
    [
        ({"p2": "p2", "p4": "p3"}, r"loss\.pairing: the student has no level p2; its levels are p3, p4, p5, p6, p7$"),
        ({"p3": "p2", "p4": "p9"}, r"loss\.pairing: the teacher has no level p9; its levels are p2, p3, p4, p5, p6$"),
        ({"p3": "p2", "p4": "p2"}, r"loss\.pairing: teacher level p2 occurs twice"),
        ({"p3": "p2"}, r"share 1 pyramid level\(s\) by name, .*; choose more pairs in loss\.pairing$"),
        ({}, r"share 0 pyramid level\(s\) by name"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(pairing: dict[str, str], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        pair_levels(FCOS, FASTER_RCNN, pairing)
    assert "\n" not in str(caught.value)


def test_equal_channels_and_sizes_need_no_layer_and_change_nothing() -> None:
    align = Align(LevelPair(LevelSpec("s", 3, 8), LevelSpec("t", 3, 8)))
    feature = torch.randn(2, 3, 4, 5)
    assert not list(align.parameters())
    target = torch.randn(2, 3, 4, 5)
    aligned = align(feature, target)
    assert aligned[0] is feature
    assert aligned[1] is target


def test_other_channels_are_projected_by_a_pointwise_convolution() -> None:
    align = Align(LevelPair(LevelSpec("s", 3, 8), LevelSpec("t", 5, 8)))
    feature = torch.randn(2, 3, 4, 6)
    assert isinstance(align.project, nn.Conv2d)
    weight, bias = align.project.weight[:, :, 0, 0], align.project.bias
    target = torch.randn(2, 5, 4, 6)
    assert_close(align(feature, target)[0], torch.einsum("oc,nchw->nohw", weight, feature) + bias.view(1, -1, 1, 1))


def test_equal_channels_are_projected_on_request() -> None:
    align = Align(LevelPair(LevelSpec("s", 3, 8), LevelSpec("t", 3, 8)), project=True)
    student = torch.randn(2, 3, 4, 5)
    layer = align.project
    assert isinstance(layer, nn.Conv2d)
    turned = torch.eye(3)[[2, 0, 1]]  # the teacher's channels in another order
    with torch.no_grad():
        layer.weight.copy_(turned[:, :, None, None])
        layer.bias.zero_()
    assert_close(align(student, torch.randn(2, 3, 4, 5))[0], student[:, [2, 0, 1]])


def test_other_sizes_are_resized_bilinearly() -> None:
    align = Align(LevelPair(LevelSpec("s", 1, 16), LevelSpec("t", 1, 8)))
    resized, _ = align(torch.tensor([[[[0.0, 4.0]]]]), torch.zeros(1, 1, 1, 4))
    assert_close(resized, torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))  # cell centers at -1/4, 1/4, 3/4, 5/4


def test_channels_and_sizes_together() -> None:
    align = Align(LevelPair(LevelSpec("s", 2, 8), LevelSpec("t", 6, 16)))
    student, teacher = torch.randn(1, 2, 8, 10), torch.randn(1, 6, 4, 5)
    assert [each.shape for each in align(student, teacher)] == [(1, 6, 4, 5)] * 2


def test_the_teacher_is_resized_on_request() -> None:
    coarse, fine = LevelSpec("p3", 1, 8), LevelSpec("p2", 1, 4)
    down = Align(LevelPair(coarse, fine), resize="teacher")
    student, teacher = torch.randn(1, 1, 1, 2), torch.tensor([[[[0.0, 2.0, 1.0, 1.0], [4.0, 6.0, 1.0, 5.0]]]])
    kept, pooled = down(student, teacher)
    assert kept is student
    assert_close(pooled, torch.tensor([[[[3.0, 2.0]]]]))  # means of the 2 x 2 cells
    up = Align(LevelPair(fine, coarse), resize="teacher")
    assert_close(
        up(torch.zeros(1, 1, 1, 4), torch.tensor([[[[0.0, 4.0]]]]))[1], torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]])
    )


def test_differences_within_a_cell_are_no_loss_when_the_teacher_is_resized() -> None:
    student, teacher = [LevelSpec("p3", 4, 8), LevelSpec("p4", 4, 16)], [LevelSpec("p2", 4, 4), LevelSpec("p3", 4, 8)]
    pyramid = {level.name: torch.randn(2, 4, 64 // level.stride, 64 // level.stride) for level in student}
    finer = {
        fine.name: pyramid[own.name].repeat_interleave(2, 2).repeat_interleave(2, 3)
        for own, fine in zip(student, teacher, strict=True)
    }
    detail = {
        name: value + torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).tile(value.shape[2] // 2, value.shape[3] // 2)
        for name, value in finer.items()
    }
    context = {"boxes": [torch.zeros(0, 4)] * 2, "size": (64, 64)}
    losses = {
        resize: sum(build("pkd", student, teacher, pairing="index", resize=resize)(pyramid, detail, **context).values())
        for resize in ("student", "teacher")
    }
    assert float(losses["teacher"]) < 1e-6 < float(losses["student"])
