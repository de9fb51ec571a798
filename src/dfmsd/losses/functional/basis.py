"""Rotation of feature channels."""

from __future__ import annotations

import torch
from torch import Tensor


def procrustes(cross: Tensor) -> Tensor:
    r"""Return the rotation that brings one set of channels closest to another.

    $R = U V^T$ with $C = U S V^T$: of all matrices with orthonormal rows or columns the one that minimizes
    $\lVert z(T) R - z(N) \rVert$ for $C = z(T)^T z(N) / n$, and so maximizes the mean correlation of channels
    of the same index.

    Args:
        cross: cross-covariance, ``C_T x C_N``.

    Returns:
        ``C_T x C_N``; orthogonal if the two numbers of channels agree, else a partial isometry.

    Source: orthogonal Procrustes (Schönemann, 1966); ``scipy.linalg.orthogonal_procrustes`` for square matrices.

    >>> rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    >>> features = torch.randn(100, 4, dtype=torch.float64)
    >>> torch.allclose(procrustes(features.T @ (features @ rotation)), rotation)
    True
    """
    u, _, vh = torch.linalg.svd(cross, full_matrices=False)
    rotation: Tensor = u @ vh
    return rotation
