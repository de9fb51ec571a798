"""Comparison with a slow, literal rendering of a formula."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def both(fast: Tensor, slow: Tensor, source: Tensor, dtype: torch.dtype) -> None:
    """Values and gradients agree; the literal one is in float64."""
    (got,) = torch.autograd.grad(fast, source, retain_graph=True)
    (want,) = torch.autograd.grad(slow, source, retain_graph=True)
    assert fast.dtype == dtype
    assert (fast - slow).abs() <= TOLERANCE[dtype] * slow.abs()
    assert (got - want).norm() <= TOLERANCE[dtype] * want.norm()
    assert want.norm() > 0
