from __future__ import annotations

import torch
from torch import nn
from torch.testing import assert_close

from dfmsd.losses.generation import GenerationBlock, SelfAdjustingFusion, generation_blocks


def test_a_generation_block_keeps_the_shape_and_sees_two_cells_around() -> None:
    block = GenerationBlock(2)
    feature = torch.randn(1, 2, 9, 9)
    changed = feature.clone()
    changed[..., 4, 4] += 10
    reached = (block(changed) != block(feature)).any(1)[0]
    assert reached.shape == (9, 9)
    assert not reached[:2].any()
    assert not reached[7:].any()
    assert reached[4, 4]


def test_a_generation_block_is_convolution_relu_convolution() -> None:
    block = GenerationBlock(3).double()
    feature = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    first, last = block[0], block[2]
    hidden = nn.functional.conv2d(feature, first.weight, first.bias, padding=1).clamp_min(0)
    assert_close(block(feature), nn.functional.conv2d(hidden, last.weight, last.bias, padding=1))


def test_fusion_starts_as_the_plain_mean() -> None:
    spatial, channel = torch.randn(2, 1, 3, 4, 4)
    assert_close(SelfAdjustingFusion()(spatial, channel), (spatial + channel) / 2)


def test_fusion_weights_are_a_softmax_and_sum_to_one() -> None:
    fusion = SelfAdjustingFusion()
    with torch.no_grad():
        fusion.theta.copy_(torch.tensor([3.0, 1.0]).log())  # softmax: 3/4, 1/4
    spatial, channel = torch.randn(2, 1, 3, 4, 4)
    assert_close(fusion(spatial, channel), 0.75 * spatial + 0.25 * channel)
    ones = torch.ones(1, 3, 4, 4)
    for theta in ([9.0, -9.0], [-40.0, 2.0]):
        with torch.no_grad():
            fusion.theta.copy_(torch.tensor(theta))
        assert_close(fusion(ones, ones), ones)  # a shared factor below 1 would shrink the loss


def test_the_gradient_favors_the_better_branch() -> None:
    fusion = SelfAdjustingFusion()
    target = torch.randn(1, 2, 3, 3)
    nn.functional.mse_loss(fusion(target, target + 1), target).backward()
    spatial, channel = fusion.theta.grad
    assert spatial < 0 < channel  # a descent step raises the weight of the spatial branch
    assert_close(spatial, -channel)


def test_full_generation_is_mgds_block_in_every_branch() -> None:
    blocks = generation_blocks(["spatial", "channel"], 6, "full")
    shapes = [tuple(p.shape) for p in blocks.parameters() if p.ndim == 4]
    assert shapes == [(6, 6, 3, 3)] * 4


def test_light_generation_halves_the_width_and_has_pointwise_kernels_in_the_channel_branch() -> None:
    blocks = generation_blocks(["spatial", "channel"], 6, "light")
    shapes = {name: [tuple(p.shape) for p in block.parameters() if p.ndim == 4] for name, block in blocks.items()}
    assert shapes == {"spatial": [(3, 6, 3, 3), (6, 3, 3, 3)], "channel": [(3, 6, 1, 1), (6, 3, 1, 1)]}
    feature = torch.randn(1, 6, 9, 9)
    changed = feature.clone()
    changed[..., 4, 4] += 10
    for name, reach in (("spatial", 25), ("channel", 1)):
        assert int((blocks[name](changed) != blocks[name](feature)).any(1).sum()) == reach
    assert list(generation_blocks(["channel"], 1, "light")) == ["channel"]
