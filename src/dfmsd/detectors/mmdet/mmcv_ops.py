"""mmcv's compiled operators, implemented with torchvision's.

``mmcv-lite`` is mmcv without its compiled module, ``mmcv._ext``, which MMDetection imports. `install` provides a
substitute with the operators that RetinaNet, FCOS, GFL, RepPoints, ATSS, Faster R-CNN and Cascade R-CNN need, on any
backbone: non-maximum suppression, average RoIAlign, both deformable convolutions and, on a GPU, the focal loss. Their
signatures are those that mmcv's Python code calls: results are written into its tensors. All other operators raise an
error with their name when they are called.

Source: https://github.com/open-mmlab/mmcv, mmcv/ops/*.py and mmcv/ops/csrc.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor

COMPILED = "mmcv._ext"
"""Name of mmcv's compiled module."""
AVERAGE = 1
"""mmcv's pooling mode of an average RoIAlign; 0 is the maximum."""
GEOMETRY = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "group", "deformable_group")
"""Options of a modulated deformable convolution, in torchvision's order."""
GEOMETRY_V1 = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
"""Names of the same options in the plain deformable convolution."""


def install() -> None:
    """Register these operators as mmcv's compiled module for this process, unless mmcv has a compiled one.

    Raises:
        ModuleNotFoundError: mmcv is not installed.
    """
    if find_spec(COMPILED) is None:
        sys.modules[COMPILED] = _Substitute(COMPILED)


def is_installed() -> bool:
    """Return whether mmcv uses the operators of this module."""
    return isinstance(sys.modules.get(COMPILED), _Substitute)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of boxes that no better box overlaps by more than the threshold, best first.

    Args:
        boxes: ``N x 4``, xyxy.
        scores: ``N``.
        iou_threshold: Highest IoU with a better box.
        offset: Added to the difference of coordinates to get the length of a side, 0 or 1.
    """
    # moving the bottom right corners by the offset lengthens every box and every intersection by it
    corner = boxes.new_tensor([0, 0, offset, offset])
    kept: Tensor = torchvision.ops.nms(boxes + corner, scores, iou_threshold)
    return kept


def roi_align_forward(
    features: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **options: Any
) -> None:
    """Pool regions of a map into ``output``, ``R x C x height x width``.

    Args:
        features: ``N x C x H x W``.
        rois: ``R x 5``: index of the image, then xyxy.
        output: Written to.
        argmax_y: Unused; for maximum pooling only.
        argmax_x: Unused; for maximum pooling only.
        options: ``spatial_scale``, ``aligned_height``, ``aligned_width``, ``sampling_ratio``, ``aligned``, and
            ``pool_mode``.

    Raises:
        NotImplementedError: ``pool_mode`` is the maximum.
    """
    _check_average(options)
    pooled = torch.ops.torchvision.roi_align(_wide(features), _wide(rois), *_pooling(options), *_sampling(options))
    output.copy_(pooled)


def roi_align_backward(
    gradient: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **options: Any
) -> None:
    """Write the gradient of `roi_align_forward` with respect to its features into ``grad_input``, ``N x C x H x W``."""
    _check_average(options)
    shape = grad_input.shape
    gradients = torch.ops.torchvision._roi_align_backward(
        _wide(gradient), _wide(rois), *_pooling(options), *shape, *_sampling(options)
    )
    grad_input.copy_(gradients)


def deform_conv_forward(
    features: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **options: Any
) -> None:
    """Convolve at sampling points shifted by ``offset``, into ``output``; the buffers stay empty.

    Args:
        features: ``N x C x H x W``.
        weight: ``O x C/groups x kernel x kernel``.
        offset: ``N x 2 kernel kernel G x H' x W'``, y before x.
        output: ``N x O x H' x W'``, written to.
        columns: Unused.
        ones: Unused.
        options: `GEOMETRY_V1`.
    """
    none = features.new_zeros(0)
    output.copy_(_convolve(features, weight, offset, none, none, _geometry(options, GEOMETRY_V1)))


def deform_conv_backward_input(
    features: Tensor,
    offset: Tensor,
    gradient: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: Any,
) -> None:
    """Write the gradients with respect to features and offsets."""
    none = features.new_zeros(0)
    gradients = _convolve_backward(gradient, features, weight, offset, none, none, _geometry(options, GEOMETRY_V1))
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    features: Tensor,
    offset: Tensor,
    gradient: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    **options: Any,
) -> None:
    """Add ``scale`` times the gradient with respect to the weights, which does not depend on their values."""
    none = features.new_zeros(0)
    weight = torch.zeros_like(grad_weight)
    gradients = _convolve_backward(gradient, features, weight, offset, none, none, _geometry(options, GEOMETRY_V1))
    grad_weight.add_(gradients[1], alpha=options["scale"])


def modulated_deform_conv_forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **options: Any,
) -> None:
    """Convolve like `deform_conv_forward`, with samples weighted by ``mask``, ``N x kernel kernel G x H' x W'``.

    The bias is empty if ``with_bias`` is false.
    """
    output.copy_(_convolve(features, weight, offset, mask, bias, _geometry(options, GEOMETRY)))


def modulated_deform_conv_backward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    gradient: Tensor,
    **options: Any,
) -> None:
    """Write the gradients with respect to all inputs of `modulated_deform_conv_forward`."""
    gradients = _convolve_backward(gradient, features, weight, offset, mask, bias, _geometry(options, GEOMETRY))
    written = [grad_input, grad_weight, grad_offset, grad_mask]
    if options["with_bias"]:
        written.append(grad_bias)
    for target, value in zip(written, gradients, strict=False):
        target.copy_(value)


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    r"""Write :math:`-\alpha_t (1 - p_t)^\gamma \log p_t` for every logit into ``output``, ``N x K``.

    Args:
        logits: ``N x K``.
        target: Labels, ``N``; ``K`` is background.
        weight: Weights of classes; must be empty.
        output: Written to.
        gamma: Exponent that reduces the loss of good predictions.
        alpha: Weight of objects, 0..1; background has ``1 - alpha``.

    Raises:
        NotImplementedError: Classes are weighted.
    """
    _check_unweighted(weight)
    output.copy_(_focal_loss(_wide(logits), target, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss with respect to its logit."""
    _check_unweighted(weight)
    with torch.enable_grad():
        leaf = _wide(logits).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_focal_loss(leaf, target, gamma, alpha).sum(), leaf)
    grad_input.copy_(gradient)


OPERATORS: tuple[Callable[..., Any], ...] = (
    nms,
    roi_align_forward,
    roi_align_backward,
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
)


class _Substitute(ModuleType):
    """A module with all operators: `OPERATORS`, and others that raise when called."""

    def __init__(self, name: str) -> None:
        super().__init__(name, __doc__)
        self.__spec__ = ModuleSpec(name, None)
        for operator in OPERATORS:
            setattr(self, operator.__name__, operator)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(_refuse, name)


def _refuse(name: str, *_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(
        f"mmcv's operator {name} needs a compiled mmcv: install one in this environment instead of mmcv-lite"
    )


def _check_average(options: Mapping[str, Any]) -> None:
    if options["pool_mode"] != AVERAGE:
        _refuse("roi_align with pool_mode max")


def _check_unweighted(weight: Tensor) -> None:
    if weight.numel():
        _refuse("sigmoid_focal_loss with weighted classes")


def _wide(value: Tensor) -> Tensor:
    """Convert half precision to float32: torchvision has no bfloat16 kernels, and coordinates need the precision."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _pooling(options: Mapping[str, Any]) -> tuple[float, int, int]:
    return options["spatial_scale"], options["aligned_height"], options["aligned_width"]


def _sampling(options: Mapping[str, Any]) -> tuple[int, bool]:
    return options["sampling_ratio"], options["aligned"]


def _geometry(options: Mapping[str, Any], names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(options[name] for name in names)


def _convolution(
    features: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, geometry: tuple[int, ...]
) -> tuple[Any, ...]:
    """Return the arguments of torchvision's operator; an empty mask or bias means none."""
    plain = mask.numel() == 0
    masked = features.new_zeros(len(features), 1) if plain else mask
    biased = bias if bias.numel() else features.new_zeros(len(weight))
    return (*map(_wide, (features, weight, offset, masked, biased)), *geometry, not plain)


def _convolve(*inputs: Any) -> Tensor:
    output: Tensor = torch.ops.torchvision.deform_conv2d(*_convolution(*inputs))
    return output


def _convolve_backward(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Return the gradients with respect to features, weight, offset, mask and bias."""
    gradients: tuple[Tensor, ...] = torch.ops.torchvision._deform_conv2d_backward(
        _wide(gradient), *_convolution(*inputs)
    )
    return gradients


def _focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = torch.arange(logits.shape[1], device=logits.device)
    one_hot = (target[:, None] == classes).to(logits.dtype)
    losses: Tensor = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha, gamma)
    return losses
