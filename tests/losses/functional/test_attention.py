from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dfmsd.losses.functional import (
    channel_attention,
    spatial_attention,
)

# Two channels of one 2 x 2 image: mean |F| is [[1, 2], [3, 0]] over channels and (2, 1) over positions.
TWO_BY_TWO = torch.tensor([[[[2.0, -2.0], [4.0, 0.0]], [[0.0, 2.0], [-2.0, 0.0]]]], dtype=torch.float64)

sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


def softmax(*values: float) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_spatial_attention_of_a_two_by_two_map_is_the_softmax_of_its_mean_magnitudes(tau: float) -> None:
    expected = 4 * torch.tensor(softmax(1 / tau, 2 / tau, 3 / tau, 0.0)).view(1, 1, 2, 2)
    assert_close(spatial_attention(TWO_BY_TWO, tau), expected, check_dtype=False)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_channel_attention_of_two_channels_is_the_softmax_of_their_mean_magnitudes(tau: float) -> None:
    expected = 2 * torch.tensor(softmax(2 / tau, 1 / tau)).view(1, 2, 1, 1)
    assert_close(channel_attention(TWO_BY_TWO, tau), expected, check_dtype=False)


def test_attention_is_not_shared_between_the_images_of_a_batch() -> None:
    batch = torch.cat([TWO_BY_TWO, 5 * TWO_BY_TWO.flip(3)])
    for attention in (spatial_attention, channel_attention):
        assert_close(attention(batch)[1:], attention(batch[1:]))


def test_a_smaller_temperature_is_more_peaked() -> None:
    peaks = [spatial_attention(TWO_BY_TWO, tau).max() for tau in (0.1, 0.5, 5.0)]
    assert peaks[0] > peaks[1] > peaks[2] > 1


@given(size=sizes, scale=st.floats(0.01, 100), tau=st.floats(0.1, 5))
def test_attention_has_mean_one_in_every_image(size: tuple[int, int, int, int], scale: float, tau: float) -> None:
    feature = scale * torch.randn(size)
    spatial, channel = spatial_attention(feature, tau), channel_attention(feature, tau)
    assert spatial.shape == (size[0], 1, *size[2:])
    assert channel.shape == (*size[:2], 1, 1)
    assert_close(spatial.flatten(1).mean(1), torch.ones(size[0]))
    assert_close(channel.flatten(1).mean(1), torch.ones(size[0]))
