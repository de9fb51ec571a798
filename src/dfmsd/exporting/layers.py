"""Convolutions and matrix products of a graph with their weights, as converters fold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
TOLERANCE = 1e-4
"""Of a weight, as a fraction of its layer's largest, for the rounding of a folded normalization."""


class Layer(NamedTuple):
    """A convolution or matrix product."""

    weight: Tensor
    """``out x in x ...``."""
    bias: Tensor
    """``out``."""
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def is_near(self, other: Layer) -> bool:
        """Return whether another layer computes the same, up to rounding; NaN is near nothing."""
        if self[2:] != other[2:] or self.weight.shape != other.weight.shape or self.bias.shape != other.bias.shape:
            return False
        pairs = (self.weight, other.weight), (self.bias, other.bias)
        return all(bool((one - two).abs().max() <= TOLERANCE * one.abs().max()) for one, two in pairs)


def layers_of(graph: nn.Module, side: int) -> list[list[Layer]]:
    """Run a graph once and return its layers, in the order in which they run.

    Each comes with its folded forms: together with the normalizations, factors and summands behind it that do not
    depend on the image. Converters fold some of them.

    Args:
        graph: accepts images ``1 x 3 x side x side``, in eval mode.
        side: of the input, in pixels.
    """
    images = torch.zeros(1, 3, side, side)
    recorder = _Recorder(images)
    with torch.no_grad(), recorder:
        graph(images)
    return recorder.layers


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the layers of a graph and their folded forms."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[list[Layer]] = []
        self.made: dict[int, tuple[int, Layer]] = {}  # identity of an output -> number of the layer, and its form
        self.variable = {id(images): images}  # what depends on the image; keeps its identities from being reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [one for arg in args for one in (arg if isinstance(arg, (list, tuple)) else [arg])]
        if any(id(one) in self.variable for one in inputs):
            outputs = result if isinstance(result, (list, tuple)) else [result]
            self.variable |= {id(one): one for one in outputs if isinstance(one, Tensor)}
            self._record(func, args, outputs[0])
        return result

    def _record(self, func: Any, args: Sequence[Any], output: Any) -> None:
        form: Layer | None = None
        if func in (aten.convolution.default, aten.addmm.default):
            number, form = len(self.layers), _layer(func, args)
            self.layers.append([])
        elif id(args[0]) in self.made:
            number, former = self.made[id(args[0])]
            form = _fold(func, args, former, self.variable)
        if form is not None:
            self.layers[number].append(form)
            self.made[id(output)] = number, form


def _layer(func: Any, args: Sequence[Any]) -> Layer:
    if func is aten.addmm.default:
        return Layer(args[2].T, args[0])
    _, weight, bias, stride, _, dilation, *_, groups = args
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return Layer(weight, bias, tuple(stride), tuple(dilation), groups)


def _fold(func: Any, args: Sequence[Any], layer: Layer, variable: dict[int, Tensor]) -> Layer | None:
    """Return the layer together with an operation on its output; None if it does not fold."""
    weight, bias = layer.weight, layer.bias
    if func is aten.native_batch_norm.default:
        _, gamma, beta, mean, variance, _, _, epsilon = args
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, gamma, beta)
        return layer._replace(weight=weight, bias=bias)
    other = args[1] if len(args) > 1 else None
    if not isinstance(other, Tensor) or id(other) in variable or other.numel() not in (1, len(bias)):
        return None
    each = other.reshape(-1)
    if func is aten.mul.Tensor:
        return layer._replace(weight=weight * each.reshape(-1, *[1] * (weight.ndim - 1)), bias=bias * each)
    return layer._replace(bias=bias + each) if func is aten.add.Tensor else None
