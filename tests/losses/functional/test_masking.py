from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from dfmsd.losses.functional import enhance_attention, select_mask, spatial_attention, stage_ratio, threshold_mask

RANKED = torch.tensor([[0.4, 1.6], [1.2, 0.8]]).view(1, 1, 2, 2)  # mean 1


def masked_values(mask: Tensor, attention: Tensor) -> list[float]:
    return sorted(attention[mask == 0].tolist())


@given(
    ratio=st.floats(0, 1),
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    direction=st.sampled_from(["important", "unimportant", "random"]),
)
def test_every_image_is_masked_to_exactly_the_rounded_share(
    ratio: float, size: tuple[int, int, int], direction: str
) -> None:
    images, height, width = size
    attention = spatial_attention(torch.randn(images, 2, height, width))
    mask = select_mask(attention, ratio, direction=direction)
    assert mask.shape == attention.shape
    assert mask.dtype == attention.dtype
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    counts = (mask == 0).flatten(1).sum(1)
    assert (counts == counts[0]).all()
    assert abs(counts[0] - ratio * height * width) <= 0.5


@pytest.mark.parametrize(("ratio", "of", "count"), [(0.5, 1, 1), (0.5, 3, 2), (0.5, 5, 3), (0.25, 2, 1), (0.125, 4, 1)])
def test_half_a_position_rounds_up(ratio: float, of: int, count: int) -> None:
    assert (select_mask(torch.rand(2, 1, 1, of), ratio) == 0).flatten(1).sum(1).tolist() == [count, count]


@pytest.mark.parametrize(("ratio", "of"), [(0.1, 10), (0.3, 10), (0.7, 10), (0.29, 100), (0.57, 100), (0.35, 20)])
def test_a_whole_share_is_not_lost_to_floating_point(ratio: float, of: int) -> None:
    assert int((select_mask(torch.rand(1, 1, 1, of), ratio) == 0).sum()) == round(ratio * of)


@pytest.mark.parametrize(
    ("direction", "ratio", "masked"),
    [
        ("important", 0.25, [1.6]),
        ("important", 0.5, [1.2, 1.6]),
        ("important", 0.75, [0.8, 1.2, 1.6]),
        ("unimportant", 0.25, [0.4]),
        ("unimportant", 0.5, [0.4, 0.8]),
    ],
)
def test_the_largest_or_the_smallest_are_masked(direction: str, ratio: float, masked: list[float]) -> None:
    mask = select_mask(RANKED, ratio, direction=direction)
    assert masked_values(mask, RANKED) == pytest.approx(masked)


def test_each_image_follows_its_own_attention() -> None:
    attention = torch.cat([RANKED, 2 - RANKED])
    assert_close(select_mask(attention, 0.5)[0], 1 - select_mask(attention, 0.5)[1])


def test_channel_masks_have_the_shape_of_channel_attention() -> None:
    attention = torch.tensor([[0.5, 1.5, 1.0], [2.0, 0.1, 0.9]]).view(2, 3, 1, 1)
    mask = select_mask(attention, 0.3)
    assert mask.flatten(1).tolist() == [[1, 0, 1], [0, 1, 1]]
    assert mask.shape == (2, 3, 1, 1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_a_mask_does_not_depend_on_the_scale_of_the_feature(scale: float) -> None:
    feature = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    assert_close(select_mask(spatial_attention(scale * feature), 0.5), select_mask(spatial_attention(feature), 0.5))


def test_the_share_holds_even_where_the_attention_underflows_to_zero() -> None:
    attention = spatial_attention(1e4 * torch.randn(2, 3, 8, 8))
    assert (attention == 0).float().mean() > 0.9
    for direction in ("important", "unimportant"):
        mask = select_mask(attention, 0.5, direction=direction)
        assert (mask == 0).flatten(1).sum(1).tolist() == [32, 32]


def test_random_masks_differ_from_draw_to_draw_and_ignore_the_attention() -> None:
    attention = torch.ones(1, 1, 8, 8)
    attention[..., 0, 0] = 1e6
    masks = torch.stack([select_mask(attention, 0.5, direction="random") for _ in range(400)])
    assert len(masks.flatten(1).unique(dim=0)) == 400
    share = (masks == 0).double().mean(0)
    assert_close(share, torch.full_like(share, 0.5), atol=0.125, rtol=0)  # 5 sigma


def test_the_same_attention_gives_the_same_mask() -> None:
    attention = spatial_attention(torch.randn(1, 2, 8, 8))
    assert_close(select_mask(attention, 0.5), select_mask(attention, 0.5))


def test_threshold_masks_attention_at_or_above_it() -> None:
    mask = threshold_mask(RANKED, 1.2)
    assert mask.dtype == RANKED.dtype
    assert masked_values(mask, RANKED) == pytest.approx([1.2, 1.6])


def test_masks_carry_no_gradient() -> None:
    assert not select_mask(RANKED.clone().requires_grad_(), 0.5).requires_grad
    assert not threshold_mask(RANKED.clone().requires_grad_(), 1.2).requires_grad


ATTENTION = torch.tensor([[0.5, 1.5], [1.0, 1.0]]).view(1, 1, 2, 2)
ERROR = torch.tensor([[1.0, 3.0], [0.0, 4.0]]).view(1, 1, 2, 2)  # mean 2
OBJECTS = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("inputs", "unnormalised"),
    [
        pytest.param({}, [0.5, 1.5, 1.0, 1.0], id="none"),
        pytest.param({"error": ERROR}, [0.5 * 1.5, 1.5 * 2.5, 1.0, 3.0], id="error"),
        pytest.param({"error": ERROR, "gamma": 2.0}, [0.5 * 2, 1.5 * 4, 1.0, 5.0], id="error, gamma 2"),
        pytest.param({"error": ERROR, "gamma": 0.0}, [0.5, 1.5, 1.0, 1.0], id="error, gamma 0"),
        pytest.param({"objects": OBJECTS}, [1.0, 1.5, 1.0, 2.0], id="object"),
        pytest.param({"objects": OBJECTS, "delta": 3.0}, [2.0, 1.5, 1.0, 4.0], id="object, delta 3"),
        pytest.param({"error": ERROR, "objects": OBJECTS}, [0.5 * 1.5 * 2, 1.5 * 2.5, 1.0, 6.0], id="error+object"),
    ],
)
def test_enhancement_by_hand(inputs: dict[str, Tensor], unnormalised: list[float]) -> None:
    expected = torch.tensor(unnormalised).view(1, 1, 2, 2)
    assert_close(enhance_attention(ATTENTION, **inputs), expected / expected.mean())


def test_enhancement_is_normalized_within_each_image() -> None:
    attention, error = spatial_attention(torch.randn(3, 2, 4, 4)), torch.rand(3, 1, 4, 4) * torch.rand(3, 1, 1, 1)
    enhanced = enhance_attention(attention, error=error)
    assert_close(enhanced.mean((1, 2, 3)), torch.ones(3))
    assert_close(enhanced[1:2], enhance_attention(attention[1:2], error=error[1:2]))


def test_a_student_without_error_leaves_the_attention_unchanged() -> None:
    assert_close(enhance_attention(ATTENTION, error=torch.zeros_like(ERROR)), ATTENTION)


@pytest.mark.parametrize(
    ("ratio", "stage", "expected"),
    [(0.5, 1, 0.5), (0.5, 2, 0.6), (0.5, 3, 0.7), (0.5, 4, 0.75), (0.5, 9, 0.75), (0.75, 2, 0.75), (0.9, 2, 0.9)],
)
def test_the_masked_share_grows_with_the_stages_up_to_its_maximum(ratio: float, stage: int, expected: float) -> None:
    assert stage_ratio(ratio, stage, 0.1, 0.75) == pytest.approx(expected)
