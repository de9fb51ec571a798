from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.errors import DfmsdError
from dfmsd.losses import Criterion
from dfmsd.losses.functional import pearson
from dfmsd.types import FeaturePyramid, LevelSpec

STUDENT = (LevelSpec("p3", 2, 8), LevelSpec("p4", 2, 16), LevelSpec("p5", 2, 32))
TEACHER = (LevelSpec("0", 3, 4), LevelSpec("1", 3, 8), LevelSpec("2", 3, 16))
SIZE = (64, 96)
BOXES = [torch.tensor([[5.0, 5.0, 60.0, 40.0]]), torch.zeros(0, 4)]


def pyramid(levels: tuple[LevelSpec, ...], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> FeaturePyramid:
    return {
        level.name: (scale * torch.randn(2, level.channels, SIZE[0] // level.stride, SIZE[1] // level.stride))
        .to(dtype)
        .requires_grad_()
        for level in levels
    }


def run(
    criterion: Criterion, student: FeaturePyramid, teacher: FeaturePyramid, stage: int = 1
) -> dict[str, torch.Tensor]:
    return criterion(student, teacher, boxes=BOXES, size=SIZE, stage=stage)


def test_features_unlike_their_levels_are_refused() -> None:
    criterion = losses.build("fitnet", STUDENT, TEACHER)
    with pytest.raises(
        DfmsdError, match="the teacher's features have no level '1', but p3, p4, p5; use the LevelSpecs'"
    ):
        criterion(pyramid(STUDENT), pyramid(STUDENT))
    with pytest.raises(DfmsdError, match="the student's level p3 has 3 channels; its LevelSpec says 2"):
        criterion({**pyramid(STUDENT), "p3": torch.rand(2, 3, 8, 12)}, pyramid(TEACHER))


@pytest.mark.parametrize("loss", ["dfmsd", [{"name": "pkd"}, {"name": "fgd"}]])
@pytest.mark.parametrize(
    ("boxes", "stage", "message"),
    [
        (BOXES[:1], 1, r"^boxes: got those of 1 image\(s\) for 2; pass one tensor per image"),
        ([*BOXES, BOXES[0]], 1, r"^boxes: got those of 3 image\(s\) for 2"),
        ([BOXES[0], torch.zeros(2, 5)], 1, r"^boxes\.1 has the shape 2 x 5; expected M x 4"),
        ([torch.zeros(4), BOXES[1]], 1, r"^boxes\.0 has the shape 4; expected M x 4"),
        (BOXES, 0, "^stage must be at least 1, got 0; stages are counted from 1"),
    ],
)
def test_impossible_boxes_and_stages_are_refused(loss: Any, boxes: list[Tensor], stage: int, message: str) -> None:
    criterion = losses.build(loss, STUDENT, TEACHER)
    with pytest.raises(DfmsdError, match=message):
        criterion(pyramid(STUDENT), pyramid(TEACHER), boxes=boxes, size=SIZE, stage=stage)


def test_terms_are_named_by_the_students_levels() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER)
    terms = run(criterion, pyramid(STUDENT), pyramid(TEACHER))
    assert list(terms) == ["mask/p3", "sfa/p3", "mask/p4", "sfa/p4"]
    assert criterion.terms == ("mask", "sfa")
    assert [(p.student.name, p.teacher.name) for p in criterion.pairs] == [("p3", "1"), ("p4", "2")]
    assert all(term.ndim == 0 for term in terms.values())


def test_each_level_is_the_method_on_its_aligned_pair() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER)
    student, teacher = pyramid(STUDENT), pyramid(TEACHER)
    terms = run(criterion, student, teacher, stage=2)
    for level, (ours, theirs, stride) in enumerate([("p3", "1", 8), ("p4", "2", 16)]):
        aligned, _ = criterion.align[level](student[ours], teacher[theirs])
        context = losses.LossContext(BOXES, SIZE, stride, 2)
        expected = criterion.methods[level](aligned, teacher[theirs].detach(), context)
        assert_close({name: terms[f"{name}/{ours}"] for name in expected}, expected)


def test_index_pairing_resizes_the_student_and_reads_boxes_at_the_teachers_stride() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER, pairing="index")
    student, teacher = pyramid(STUDENT), pyramid(TEACHER)
    terms = run(criterion, student, teacher, stage=2)
    assert {name.partition("/")[2] for name in terms} == {"p3", "p4", "p5"}
    resized = torch.nn.functional.interpolate(
        criterion.align[0].project(student["p3"]), scale_factor=2, mode="bilinear"
    )
    expected = criterion.methods[0](resized, teacher["0"].detach(), losses.LossContext(BOXES, SIZE, 4, 2))
    assert_close({name: terms[f"{name}/p3"] for name in expected}, expected)


def test_weight_scales_every_term() -> None:
    student, teacher = pyramid(STUDENT), pyramid(TEACHER)
    plain, weighted = (losses.build("dfmsd", STUDENT, TEACHER, **options) for options in ({}, {"weight": 2.5}))
    weighted.load_state_dict(plain.state_dict())
    once, more = run(plain, student, teacher), run(weighted, student, teacher)
    assert_close(more, {name: 2.5 * value for name, value in once.items()})


def test_alpha_and_beta_scale_their_own_term() -> None:
    student, teacher = pyramid(STUDENT), pyramid(TEACHER)
    plain, scaled = (
        losses.build("dfmsd", STUDENT, TEACHER, **options) for options in ({"alpha": 1}, {"alpha": 3, "beta": 0.5})
    )
    scaled.load_state_dict(plain.state_dict())
    once, more = run(plain, student, teacher), run(scaled, student, teacher)
    assert_close(more, {name: (3 if name.startswith("mask") else 0.5) * value for name, value in once.items()})


def test_the_sum_trains_the_student_and_the_layers_but_not_the_teacher() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER)
    student, teacher = pyramid(STUDENT), pyramid(TEACHER)
    sum(run(criterion, student, teacher, stage=2).values()).backward()
    assert all(level.grad is None for level in teacher.values())
    assert student["p3"].grad.abs().sum() > 0
    assert student["p4"].grad.abs().sum() > 0
    assert student["p5"].grad is None  # the teacher has no such stride
    assert [name for name, p in criterion.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_parameters_are_alignment_and_generation_only() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER, generation="full")
    per_level = 3 * 2 + 3 + 2 * 2 * (3 * 3 * 9 + 3) + 2  # 1x1 convolution; 2 branches of 2 3x3 convolutions; theta
    assert sum(p.numel() for p in criterion.parameters()) == 2 * per_level
    assert {name.partition(".")[0] for name, _ in criterion.named_parameters()} == {"align", "methods"}


def test_no_feature_enters_the_state_dict() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER)
    before = set(criterion.state_dict())
    run(criterion, pyramid(STUDENT), pyramid(TEACHER), stage=2)
    assert set(criterion.state_dict()) == before == {name for name, _ in criterion.named_parameters()}


def test_equal_pyramids_need_no_alignment() -> None:
    criterion = losses.build("dfmsd", TEACHER, TEACHER, alpha=0.0)
    assert not list(criterion.parameters())
    teacher = pyramid(TEACHER)
    terms = run(criterion, {name: level.detach().clone() for name, level in teacher.items()}, teacher)
    assert all(value == 0 for value in terms.values())


def test_diagnostics_are_the_correlation_of_the_unmasked_aligned_student() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER)
    student, teacher = pyramid(STUDENT), pyramid(TEACHER)
    run(criterion, student, teacher)
    assert set(criterion.diagnostics) == {"pearson/p3", "pearson/p4"}
    aligned, _ = criterion.align[0](student["p3"], teacher["1"])
    assert_close(criterion.diagnostics["pearson/p3"], pearson(aligned, teacher["1"]).detach())
    assert not any(value.requires_grad for value in criterion.diagnostics.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_under_autocast_give_the_float32_terms(dtype: torch.dtype) -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER)
    student, teacher = pyramid(STUDENT, dtype, scale=300), pyramid(TEACHER, dtype, scale=300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = run(criterion, student, teacher, stage=2)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in terms.values())
    full = run(
        criterion, {k: v.float() for k, v in student.items()}, {k: v.float() for k, v in teacher.items()}, stage=2
    )
    assert_close(terms, full)
    sum(terms.values()).backward()
    assert student["p3"].grad.dtype == dtype
    assert torch.isfinite(student["p3"].grad).all()


def test_double_features_stay_double() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER).double()
    terms = run(criterion, pyramid(STUDENT, torch.float64), pyramid(TEACHER, torch.float64))
    assert all(value.dtype == torch.float64 for value in terms.values())


def test_boxes_change_the_masks_of_later_stages_only() -> None:
    criterion = losses.build("dfmsd", STUDENT, TEACHER)
    student, teacher = pyramid(STUDENT), pyramid(TEACHER)
    none = [torch.zeros(0, 4)] * 2
    for stage, moved in ((1, False), (2, True)):
        terms = [criterion(student, teacher, boxes=boxes, size=SIZE, stage=stage)["mask/p3"] for boxes in (BOXES, none)]
        assert bool(terms[0] != terms[1]) is moved


@pytest.mark.parametrize("name", ["pkd", "cwd", "mgd", "fitnet", "amd"])
def test_boxes_and_size_are_optional(name: str) -> None:
    criterion, levels = build_any(name)
    terms = criterion(levels, levels)
    assert list(terms) == [f"{term}/p{i}" for i in (3, 4) for term in criterion.terms]


@pytest.mark.parametrize(
    ("name", "options", "passed", "missing"),
    [
        ("fgd", {}, {}, "boxes"),
        ("dfmsd", {}, {}, "size"),
        ("dmkd", {}, {}, "size"),
        ("dfmsd", {"levels": "equal"}, {"stage": 2}, "boxes"),
        ("crosskd", {}, {}, "heads"),
    ],
)
def test_a_missing_argument_is_named(
    name: str, options: dict[str, object], passed: dict[str, Any], missing: str
) -> None:
    criterion, levels = build_any(name, **options)
    with pytest.raises(DfmsdError, match=rf"^the loss {name} .*: pass {missing}= to the criterion"):
        criterion(levels, levels, **passed)


def test_dfmsd_needs_neither_boxes_nor_size_where_no_option_uses_them() -> None:
    criterion, levels = build_any("dfmsd", levels="equal", enhancement=False)
    assert criterion(levels, levels, stage=2).keys() == criterion(levels, levels).keys()
    criterion, _ = build_any("fgd", fg=0.0, bg=0.0)
    assert list(criterion(levels, levels)) == ["attention/p3", "relation/p3", "attention/p4", "relation/p4"]


def build_any(name: str, **options: object) -> tuple[Criterion, dict[str, Tensor]]:
    """Build a loss between two equal pyramids, and one of these."""
    levels = [LevelSpec(f"p{i}", 4, 2**i) for i in (3, 4)]
    pyramid = {level.name: torch.randn(2, 4, 64 // level.stride, 64 // level.stride) for level in levels}
    return losses.build(name, levels, levels, **options), pyramid
