"""The substitutes for mmcv's compiled operators against literal loops, without mmcv and MMDetection."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfmsd.detectors.mmdet import mmcv_ops

EMPTY = torch.zeros(0)
POOLING = {"aligned_height": 3, "aligned_width": 2, "spatial_scale": 0.5, "pool_mode": 1}
V1 = {"kW": 3, "kH": 3, "dW": 2, "dH": 1, "padW": 1, "padH": 2, "dilationW": 1, "dilationH": 2, "group": 2}
V1 |= {"deformable_group": 2, "im2col_step": 2}
V2 = {"kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 2, "pad_h": 2, "pad_w": 1, "dilation_h": 2}
V2 |= {"dilation_w": 1, "group": 2, "deformable_group": 2}
GROUPS, KERNEL = 2, 3


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty mmcv package."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmcv"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "mmcv"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in ("mmcv", mmcv_ops.COMPILED):
        sys.modules.pop(name, None)


def test_operators_are_substituted_if_mmcv_is_not_compiled(package: Path) -> None:
    mmcv_ops.install()
    assert mmcv_ops.is_installed()
    module = importlib.import_module("mmcv._ext")
    assert module.nms is mmcv_ops.nms
    mmcv_ops.install()
    assert importlib.import_module("mmcv._ext") is module


def test_compiled_operators_are_not_replaced(package: Path) -> None:
    (package / "_ext.py").write_text("nms = 'compiled'\n")
    mmcv_ops.install()
    assert not mmcv_ops.is_installed()
    assert importlib.import_module("mmcv._ext").nms == "compiled"


def test_other_operators_raise_when_called(package: Path) -> None:
    mmcv_ops.install()
    module = importlib.import_module("mmcv._ext")
    assert hasattr(module, "softnms")
    assert not hasattr(module, "__path__")
    with pytest.raises(NotImplementedError, match="mmcv's operator softnms needs a compiled mmcv"):
        module.softnms(EMPTY, EMPTY, iou_threshold=0.5)
    maximum = {**POOLING, "pool_mode": 0, "sampling_ratio": 2, "aligned": True}
    with pytest.raises(NotImplementedError, match="roi_align with pool_mode max"):
        module.roi_align_forward(EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, **maximum)
    with pytest.raises(NotImplementedError, match="weighted classes"):
        module.sigmoid_focal_loss_forward(EMPTY, EMPTY, torch.ones(2), EMPTY, gamma=2.0, alpha=0.25)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_boxes_that_no_better_box_overlaps(offset: int) -> None:
    corners = torch.randint(0, 12, (60, 2)).double()
    boxes = torch.cat([corners, corners + torch.randint(1, 9, (60, 2))], dim=1)
    scores = torch.rand(60).double()
    kept = mmcv_ops.nms(boxes, scores, iou_threshold=0.4, offset=offset)
    expected: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(_overlap(boxes[index], boxes[better], offset) <= 0.4 for better in expected):
            expected.append(index)
    assert kept.tolist() == expected
    assert 1 < len(expected) < 60


def test_the_offset_lengthens_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]])  # 2 of 6 pixels in common, with the offset
    scores = torch.tensor([0.5, 0.6])
    assert mmcv_ops.nms(boxes, scores, iou_threshold=0.3, offset=0).tolist() == [1, 0]
    assert mmcv_ops.nms(boxes, scores, iou_threshold=0.3, offset=1).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [2, 0])
def test_roi_align_is_the_mean_of_bilinear_samples(aligned: bool, ratio: int, dtype: torch.dtype) -> None:
    features = torch.rand(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2.0, 11.0, 9.0], [1, -3.0, 0.0, 17.5, 13.0]], dtype=torch.float64)
    options = {**POOLING, "sampling_ratio": ratio, "aligned": aligned}
    output, grad = torch.zeros(2, 3, 3, 2, dtype=dtype), torch.zeros(2, 3, 7, 9, dtype=dtype)
    mmcv_ops.roi_align_forward(features.detach().to(dtype), rois.to(dtype), output, EMPTY, EMPTY, **options)
    expected = _roi_align(features, rois, ratio, aligned)
    _close(output, expected)
    weights = torch.rand(2, 3, 3, 2, dtype=torch.float64)
    mmcv_ops.roi_align_backward(weights.to(dtype), rois.to(dtype), EMPTY, EMPTY, grad, **options)
    _close(grad, torch.autograd.grad(expected, features, weights)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_deformable_convolution_and_its_gradients(dtype: torch.dtype) -> None:
    features, weight, _, offset, _ = _convolution_inputs()
    expected = _convolve(features, weight, None, offset, None)
    wide, output = [value.detach().to(dtype) for value in (features, weight, offset)], expected.detach().to(dtype) * 0
    mmcv_ops.deform_conv_forward(wide[0], wide[1], wide[2], output, EMPTY, EMPTY, **V1)
    _close(output, expected)
    gradient = torch.rand_like(expected)
    wanted = torch.autograd.grad(expected, (features, offset, weight), gradient)
    found = [torch.zeros_like(value, dtype=dtype) for value in wanted]
    narrow = gradient.to(dtype)
    mmcv_ops.deform_conv_backward_input(wide[0], wide[2], narrow, *found[:2], wide[1], EMPTY, **V1)
    mmcv_ops.deform_conv_backward_parameters(wide[0], wide[2], narrow, found[2], EMPTY, EMPTY, scale=0.5, **V1)
    for own, want in zip(found, (*wanted[:2], 0.5 * wanted[2]), strict=True):
        _close(own, want)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modulated_deformable_convolution_and_its_gradients(dtype: torch.dtype, biased: bool) -> None:
    features, weight, bias, offset, mask = inputs = _convolution_inputs()
    expected = _convolve(features, weight, bias if biased else None, offset, mask)
    own = [value.detach().to(dtype) for value in (features, weight, bias if biased else EMPTY, offset, mask)]
    output = torch.zeros_like(expected, dtype=dtype)
    options = {**V2, "with_bias": biased}
    mmcv_ops.modulated_deform_conv_forward(*own[:3], EMPTY, *own[3:], output, EMPTY, **options)
    _close(output, expected)
    gradient = torch.rand_like(expected)
    wanted = torch.autograd.grad(expected, inputs, gradient, allow_unused=True)  # the bias where there is none
    found = [torch.zeros_like(value) for value in own]
    mmcv_ops.modulated_deform_conv_backward(*own[:3], EMPTY, *own[3:], EMPTY, *found, gradient.to(dtype), **options)
    for value, want in zip(found, wanted, strict=True):
        if want is not None:
            _close(value, want)
    assert (wanted[2] is None) == (not biased)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    features, weight, _, offset, _ = (value.detach().to(dtype) for value in _convolution_inputs())
    expected = _convolve(features.double(), weight.double(), None, offset.double(), None)
    output = torch.zeros_like(expected, dtype=dtype)
    mmcv_ops.deform_conv_forward(features, weight, offset, output, EMPTY, EMPTY, **V1)
    torch.testing.assert_close(output.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_loss_and_its_derivative(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 3, 0])  # 3 is background
    gamma, alpha = 1.5, 0.3
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        for index, logit in enumerate(row):
            p = torch.sigmoid(logit)
            object_term, background_term = -alpha * (1 - p) ** gamma * p.log(), -(1 - alpha) * p**gamma * (1 - p).log()
            rows.append(object_term if index == label else background_term)
    expected = torch.stack(rows).view(6, 3)
    output, grad = torch.zeros(6, 3, dtype=dtype), torch.zeros(6, 3, dtype=dtype)
    with torch.no_grad():  # as in a forward pass of a function of one's own
        mmcv_ops.sigmoid_focal_loss_forward(logits.to(dtype), target, EMPTY, output, gamma, alpha)
        mmcv_ops.sigmoid_focal_loss_backward(logits.to(dtype), target, EMPTY, grad, gamma, alpha)
    _close(output, expected)
    _close(grad, torch.autograd.grad(expected.sum(), logits)[0])


def _close(got: Tensor, want: Tensor) -> None:
    tolerance = 1e-5 if got.dtype == torch.float32 else 1e-9
    assert (got - want).norm() <= tolerance * want.norm()
    assert want.norm() > 0


def _overlap(one: Tensor, other: Tensor, offset: int) -> float:
    """Intersection over union of boxes that are ``offset`` pixels longer than their coordinates' difference."""

    def area(box: Tensor) -> float:
        width, height = (box[2:] - box[:2] + offset).clamp(min=0).tolist()
        return float(width * height)

    common = area(torch.cat([torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])]))
    return common / (area(one) + area(other) - common)


def _bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample ``C x H x W`` at a point; values beyond the edges are 0."""
    height, width = image.shape[-2:]
    top, left = math.floor(y.detach()), math.floor(x.detach())
    total = torch.zeros(len(image), dtype=image.dtype)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                total = total + (1 - (y - row).abs()) * (1 - (x - column).abs()) * image[:, row, column]
    return total


def _roi_align(features: Tensor, rois: Tensor, ratio: int, aligned: bool) -> Tensor:
    rows, columns = POOLING["aligned_height"], POOLING["aligned_width"]
    shift = 0.5 if aligned else 0.0
    pooled = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (value * POOLING["spatial_scale"] - shift for value in box)
        cell_h, cell_w = (y2 - y1) / rows, (x2 - x1) / columns
        n_h, n_w = (ratio, ratio) if ratio else (math.ceil(cell_h), math.ceil(cell_w))
        for row in range(int(rows)):
            for column in range(int(columns)):
                samples = [
                    _clamped(
                        features[int(image)],
                        y1 + (row + (i + 0.5) / n_h) * cell_h,
                        x1 + (column + (j + 0.5) / n_w) * cell_w,
                    )
                    for i in range(n_h)
                    for j in range(n_w)
                ]
                pooled.append(torch.stack(samples).mean(dim=0))
    return torch.stack(pooled).view(len(rois), int(rows), int(columns), -1).permute(0, 3, 1, 2)


def _clamped(image: Tensor, y: float, x: float) -> Tensor:
    """Sample with points up to one cell outside clamped to the edge; points farther away are 0."""
    height, width = image.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image[:, 0, 0] * 0
    inside = [min(max(value, 0.0), side - 1.0) for value, side in ((y, height), (x, width))]
    point = torch.tensor(inside, dtype=image.dtype)
    return _bilinear(image, point[0], point[1])


def _convolution_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features, weight, bias, offset and mask for the geometry of `V1` and `V2`, which is the same."""
    points = GROUPS * KERNEL * KERNEL
    shapes = ((2, 4, 5, 6), (6, 2, KERNEL, KERNEL), (6,), (2, 2 * points, 5, 3), (2, points, 5, 3))
    made = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    return made[0], made[1], made[2], made[3], made[4]


def _convolve(features: Tensor, weight: Tensor, bias: Tensor | None, offset: Tensor, mask: Tensor | None) -> Tensor:
    batch, per_group = len(features), features.shape[1] // GROUPS
    rows, columns = offset.shape[-2:]
    outputs = []
    for n in range(batch):
        for row in range(rows):
            for column in range(columns):
                taps = []  # channels x kernel cells
                for group in range(GROUPS):
                    own = features[n, group * per_group : (group + 1) * per_group]
                    cells = []
                    for i in range(KERNEL):
                        for j in range(KERNEL):
                            point = group * KERNEL * KERNEL + i * KERNEL + j
                            y = row * V2["stride_h"] - V2["pad_h"] + i * V2["dilation_h"]
                            x = column * V2["stride_w"] - V2["pad_w"] + j * V2["dilation_w"]
                            y = y + offset[n, 2 * point, row, column]
                            x = x + offset[n, 2 * point + 1, row, column]
                            scale = 1 if mask is None else mask[n, point, row, column]
                            cells.append(_bilinear(own, y, x) * scale)
                    taps.append(torch.stack(cells, dim=1))
                patch = torch.cat(taps)  # convolution's groups are the deformable ones: both split the channels in two
                parts = [
                    torch.einsum("ock,ck->o", w.flatten(2), p)
                    for w, p in zip(weight.chunk(GROUPS), patch.chunk(GROUPS), strict=True)
                ]
                outputs.append(torch.cat(parts))
    result = torch.stack(outputs).view(batch, rows, columns, -1).permute(0, 3, 1, 2)
    return result if bias is None else result + bias.view(-1, 1, 1)
