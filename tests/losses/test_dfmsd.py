from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.testing import assert_close

from dfmsd.errors import DfmsdError
from dfmsd.losses import DFMSD, DFMSDOptions, LossContext

N, C, H, W, STRIDE = 2, 4, 5, 6, 8
BOXES = (torch.tensor([[3.0, 9.0, 30.0, 33.0], [25.0, 0.0, 44.0, 12.0]]), torch.zeros(0, 4))
SIZE = (H * STRIDE, W * STRIDE)


def context(stage: int = 1, boxes: Sequence[Tensor] = BOXES) -> LossContext:
    return LossContext(boxes, SIZE, STRIDE, stage)


def pair() -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, N, C, H, W, dtype=torch.float64)
    return student.requires_grad_(), 2 * teacher + 0.3


def method(**options: object) -> DFMSD:
    loss = DFMSD(C, DFMSDOptions(**options)).double()
    if loss.fusion is not None:
        torch.nn.init.normal_(loss.fusion.theta)  # equal weights would hide a swap of the branches
    return loss


# A slow, literal rendering of the formulas, one image and one cell at a time.


def slow_standardized(feature: Tensor, statistics: Tensor, eps: float) -> Tensor:
    columns = []
    for c in range(C):
        values = statistics[:, c].flatten()
        mean = values.sum() / len(values)
        std = ((values - mean) ** 2).sum().div(len(values) - 1).sqrt()
        columns.append((feature[:, c] - mean) / (std + eps))
    return torch.stack(columns, dim=1)


def slow_attention(energies: list[float], tau: float) -> list[float]:
    powers = [math.exp(energy / tau) for energy in energies]
    return [len(powers) * power / sum(powers) for power in powers]


def slow_spatial_attention(image: Tensor, tau: float) -> list[float]:
    energies = [sum(abs(float(image[c, i, j])) for c in range(C)) / C for i, j in cells()]
    mean = sum(energies) / len(energies)
    return slow_attention([energy / mean for energy in energies], tau)


def slow_top(attention: list[float], ratio: float) -> list[float]:
    count = int(ratio * len(attention) + 0.5)
    order = sorted(range(len(attention)), key=lambda k: attention[k], reverse=True)
    return [0.0 if k in order[:count] else 1.0 for k in range(len(attention))]


def cells() -> list[tuple[int, int]]:
    return [(i, j) for i in range(H) for j in range(W)]


def slow_enhanced(n: int, attention: list[float], student: Tensor, teacher: Tensor, o: DFMSDOptions) -> list[float]:
    distance = (slow_standardized(teacher, teacher, o.eps) - slow_standardized(student, student, o.eps)).abs()
    error = [float(distance[n, :, i, j].sum()) / C for i, j in cells()]
    centers = [((j + 0.5) * STRIDE, (i + 0.5) * STRIDE) for i, j in cells()]
    inside = [any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in BOXES[n].tolist()) for x, y in centers]
    mean = sum(error) / len(error)
    attention = [a * (1 + error[k] / mean) * (1 + inside[k]) for k, a in enumerate(attention)]
    return [a * len(attention) / sum(attention) for a in attention]


def slow_masks(student: Tensor, teacher: Tensor, stage: int, o: DFMSDOptions) -> tuple[Tensor, Tensor]:
    spatial, channel = [], []
    for n in range(N):
        attention, ratio = slow_spatial_attention(teacher[n], o.tau), o.ratio
        if stage > 1 and o.enhancement:
            attention = slow_enhanced(n, attention, student, teacher, o)
            ratio = min(o.ratio + (stage - 1) * 0.1, 0.75)
        spatial.append(slow_top(attention, ratio))
        energies = [sum(abs(float(teacher[n, c, i, j])) for i, j in cells()) / (H * W) for c in range(C)]
        channel.append(slow_top(slow_attention(energies, o.tau), o.channel_ratio))
    return torch.tensor(spatial).view(N, 1, H, W).double(), torch.tensor(channel).view(N, C, 1, 1).double()


def slow_generation(loss: DFMSD, branch: str, feature: Tensor) -> Tensor:
    weights = dict(loss.generation[branch].named_parameters())
    around = weights["0.weight"].shape[-1] // 2
    hidden = conv2d(feature, weights["0.weight"], weights["0.bias"], padding=around)
    return conv2d(hidden * (hidden > 0), weights["2.weight"], weights["2.bias"], padding=around)


@torch.no_grad()
def slow_terms(loss: DFMSD, student: Tensor, teacher: Tensor, stage: int) -> dict[str, float]:
    o = loss.options
    spatial, channel = slow_masks(student, teacher, stage, o)
    target = slow_standardized(teacher, teacher, o.eps)
    theta = [math.exp(value) for value in loss.fusion.theta.tolist()]
    rebuilt = (
        theta[0] * slow_generation(loss, "spatial", student * spatial)
        + theta[1] * slow_generation(loss, "channel", student * channel)
    ) / sum(theta)
    gap = slow_standardized(student, student, o.eps) - slow_standardized(teacher, teacher, o.eps)
    count = N * C * H * W
    return {
        "mask": o.alpha * float(((rebuilt - target) ** 2).sum()) / count,
        "sfa": o.beta * float((gap**2).sum()) / count / 2,
    }


def example() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return pair()


@pytest.mark.parametrize("enhancement", [True, False])
@pytest.mark.parametrize("stage", [1, 2, 4])
def test_a_step_equals_the_formulas_written_out(enhancement: bool, stage: int) -> None:
    loss = method(enhancement=enhancement, alpha=1.3, beta=0.7, tau=0.8)
    student, teacher = example()
    terms = loss(student, teacher, context(stage))
    expected = slow_terms(loss, student, teacher, stage)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("generation", ["full", "light"])
def test_a_step_with_either_generation_equals_the_formulas(generation: str) -> None:
    loss = method(generation=generation)
    student, teacher = example()
    expected = slow_terms(loss, student, teacher, 2)
    got = {name: value.item() for name, value in loss(student, teacher, context(2)).items()}
    assert got == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
def test_the_example_tells_enhanced_masks_from_larger_ones() -> None:
    student, teacher = example()
    for stage in (2, 4):
        enhanced, _ = slow_masks(student, teacher, stage, DFMSDOptions(tau=0.8))
        plain, _ = slow_masks(student, teacher, 1, DFMSDOptions(tau=0.8, ratio=min(0.4 + 0.1 * stage, 0.75)))
        assert enhanced.sum() == plain.sum()
        assert (enhanced != plain).any()


# Each part switched off in turn.


def rebuilt_from(loss: DFMSD, branch: str, student: Tensor, teacher: Tensor) -> Tensor:
    masks = loss.masks(teacher, context(), student - teacher)
    target = slow_standardized(teacher, teacher, loss.options.eps)
    return (slow_generation(loss, branch, student * masks[branch]) - target).square().mean()


@pytest.mark.parametrize(("off", "left"), [("spatial", "channel"), ("channel", "spatial")])
def test_one_branch_alone_generates_the_feature(off: str, left: str) -> None:
    both, single = method(alpha=1.0), method(alpha=1.0, **{off: False})
    single.generation[left].load_state_dict(both.generation[left].state_dict())
    student, teacher = pair()
    terms = single(student, teacher, context())
    assert_close(terms["mask"], rebuilt_from(single, left, student, teacher))
    assert set(single.masks(teacher, context(), student - teacher)) == set(single.generation) == {left}
    assert single.fusion is None
    reference = both(student, teacher, context())
    assert terms["mask"] != reference["mask"]
    assert_close(terms["sfa"], reference["sfa"])


def test_beta_zero_drops_the_alignment_and_nothing_else() -> None:
    loss, without = method(), method(beta=0.0)
    without.load_state_dict(loss.state_dict())
    student, teacher = pair()
    terms = without(student, teacher, context())
    assert without.terms == tuple(terms) == ("mask",)
    assert_close(terms["mask"], loss(student, teacher, context())["mask"])


def test_alpha_zero_drops_the_masking_with_its_layers() -> None:
    without = method(alpha=0.0)
    student, teacher = pair()
    terms = without(student, teacher, context(stage=2))
    assert without.terms == tuple(terms) == ("sfa",)
    assert not list(without.parameters())
    assert_close(terms["sfa"], method()(student, teacher, context())["sfa"])


@pytest.mark.parametrize(("enhancement", "same"), [(False, True), (True, False)])
def test_only_enhancement_makes_a_later_stage_mask_differently(enhancement: bool, same: bool) -> None:
    loss = method(enhancement=enhancement)
    student, teacher = pair()
    first, second = (loss(student, teacher, context(stage)) for stage in (1, 2))
    assert bool(first["mask"] == second["mask"]) is same
    assert first["sfa"] == second["sfa"]


def test_a_later_stage_masks_more_positions_and_as_many_channels() -> None:
    loss = method(ratio=0.5, channel_ratio=0.5)
    _, teacher = pair()
    difference = torch.randn(N, C, H, W, dtype=torch.float64)
    for stage, positions in ((1, 15), (2, 18), (3, 21), (9, 23)):  # of 30; 0.75 is 22.5
        masks = loss.masks(teacher, context(stage), difference)
        assert (masks["spatial"] == 0).flatten(1).sum(1).tolist() == [positions] * N
        assert (masks["channel"] == 0).flatten(1).sum(1).tolist() == [2] * N


def test_objects_and_errors_attract_the_mask_in_a_later_stage() -> None:
    loss = method(ratio=0.1)
    teacher = torch.ones(N, C, H, W, dtype=torch.float64)  # equal attention everywhere
    box = torch.tensor([[8.0, 8.0, 24.0, 16.0]])  # cells (1, 1) and (1, 2)
    place = context(stage=2, boxes=[box, box])
    uniform = torch.ones(N, C, H, W, dtype=torch.float64)
    assert (loss.masks(teacher, place, uniform)["spatial"][:, 0, 1, 1:3] == 0).all()
    worst = uniform.clone()
    worst[:, :, 4] = -9  # six cells without objects, as many as are masked
    assert (loss.masks(teacher, place, worst)["spatial"][:, 0, 4] == 0).all()


@pytest.mark.parametrize("stage", [1, 2])
def test_masks_do_not_depend_on_the_scale_of_the_teacher(stage: int) -> None:
    loss = method()
    _, teacher = pair()
    difference = torch.randn(N, C, H, W, dtype=torch.float64)
    masks, scaled = (loss.masks(factor * teacher, context(stage), difference) for factor in (1, 40))
    assert all(torch.equal(mask, scaled[name]) for name, mask in masks.items())


# What the terms mean.


def test_a_student_equal_to_its_teacher_has_no_alignment_error() -> None:
    _, teacher = pair()
    terms = method()(teacher.clone(), teacher, context())
    assert terms["sfa"] == 0
    assert terms["mask"] > 0  # the layers have not learnt to rebuild it yet


def test_standardized_terms_ignore_scale_and_shift_of_the_teachers_channels() -> None:
    loss = method(direction="random", eps=1e-12)
    student, teacher = pair()
    scale, shift = 10 ** torch.randn(2, 1, C, 1, 1, dtype=torch.float64)
    values = []
    for target in (teacher, scale * teacher + shift):
        torch.manual_seed(1)  # equal masks: the attention follows the magnitude
        values.append(loss(student, target, context()))
    assert_close(values[0], values[1])


def test_random_masks_differ_between_steps() -> None:
    loss = method(direction="random")
    _, teacher = pair()
    first, second = (loss.masks(teacher, context(), teacher) for _ in range(2))
    assert (first["spatial"] != second["spatial"]).any()


# Gradients.


def test_the_alignment_has_a_gradient_everywhere() -> None:
    student, teacher = pair()
    (gradient,) = torch.autograd.grad(method()(student, teacher, context())["sfa"], student)
    assert (gradient != 0).all()


def test_the_mask_term_has_a_gradient_where_a_branch_is_not_masked() -> None:
    loss = method(generation="full")  # so few hidden channels of 1x1 kernels may all be 0
    student, teacher = pair()
    masks = loss.masks(teacher, context(), student - teacher)
    (gradient,) = torch.autograd.grad(loss(student, teacher, context())["mask"], student)
    seen = (masks["spatial"] + masks["channel"]) > 0
    assert 0 < int((~seen).sum()) < seen.numel()
    assert_close(gradient != 0, seen)


def test_all_layers_of_both_branches_and_the_fusion_learn() -> None:
    loss = method()
    loss(*pair(), context())["mask"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


@pytest.mark.parametrize("stage", [1, 2])
def test_gradcheck(stage: int) -> None:
    loss = DFMSD(2, DFMSDOptions(channel_ratio=0.5)).double()
    student, teacher = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64)
    boxes = [torch.tensor([[0.0, 0.0, 16.0, 8.0]])]

    def total(feature: Tensor) -> Tensor:
        terms = loss(feature, teacher, LossContext(boxes, (24, 24), 8, stage))
        return sum(terms.values())

    assert torch.autograd.gradcheck(total, student.requires_grad_())


@pytest.mark.parametrize(
    "size", [pytest.param((1, C, 1, 1), id="one value per channel"), pytest.param((2, C, 3, 3), id="dead teacher")]
)
def test_degenerate_levels_stay_finite(size: tuple[int, ...]) -> None:
    loss = method()
    student, teacher = torch.randn(size, dtype=torch.float64).requires_grad_(), torch.zeros(size, dtype=torch.float64)
    boxes = [torch.zeros(0, 4)] * size[0]
    for stage in (1, 2):
        total = sum(loss(student, teacher, context(stage, boxes=boxes)).values())
        (gradient,) = torch.autograd.grad(total, student)
        assert torch.isfinite(total)
        assert torch.isfinite(gradient).all()


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.2}, r"loss\.ratio must be in 0\.\.1, got 1\.2"),
        ({"channel_ratio": -0.1}, r"loss\.channel_ratio must be in 0\.\.1, got -0\.1"),
        ({"alpha": -1.0}, r"loss\.alpha must be at least 0, got -1\.0"),
        ({"tau": 0.0}, r"loss\.tau and loss\.eps must be above 0"),
        ({"eps": 0.0}, r"loss\.tau and loss\.eps must be above 0"),
        ({"alpha": 0.0, "beta": 0.0}, r"nothing is distilled; use `no_distill`"),
        ({"spatial": False, "channel": False}, r"both off; switch one on"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        DFMSDOptions(**options)
    assert "\n" not in str(caught.value)


def test_alignment_alone_needs_no_branch() -> None:
    assert method(alpha=0.0, spatial=False, channel=False).terms == ("sfa",)


@pytest.mark.parametrize(("stride", "share"), [(4, 4.0), (8, 1.0), (16, 0.25), (64, 1 / 64)])
def test_a_level_weighs_as_much_as_it_has_cells(stride: int, share: float) -> None:
    student, teacher = torch.randn(2, 1, C, 128 // stride, 192 // stride)
    place = LossContext([torch.zeros(0, 4)], (128, 192), stride)
    losses = [DFMSD(C, DFMSDOptions(levels=levels)) for levels in ("equal", "cells")]
    losses[1].load_state_dict(losses[0].state_dict())
    equal, cells = (loss(student, teacher, place) for loss in losses)
    assert equal.keys() == cells.keys() == {"mask", "sfa"}
    for name, value in equal.items():
        assert_close(cells[name], share * value)


def test_a_cell_has_the_same_gradient_on_all_levels() -> None:
    """The gradient of one cell, of a feature that repeats itself, does not depend on how many cells its level has."""
    tile_student, tile_teacher = torch.randn(2, 1, C, 4, 4, dtype=torch.float64)
    pulls = []
    for stride, repeats in ((8, 4), (16, 2), (32, 1)):
        student = tile_student.repeat(1, 1, repeats, repeats).requires_grad_()
        teacher = tile_teacher.repeat(1, 1, repeats, repeats)
        place = LossContext([torch.zeros(0, 4)], (128, 128), stride)
        method(alpha=0.0, eps=1e-9)(student, teacher, place)["sfa"].backward()
        assert student.grad is not None
        pulls.append(student.grad[..., :4, :4])
    # the deviation divides by n - 1: 255, 63 and 15
    assert_close(pulls[1], pulls[0], rtol=0.02, atol=1e-5)
    assert_close(pulls[2], pulls[0], rtol=0.1, atol=1e-4)
