"""DMKD at one pyramid level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dfmsd.losses.dfmsd import DFMSD, DFMSDOptions


@dataclass(frozen=True)
class DMKDOptions(DFMSDOptions):
    """The options of `DFMSDOptions` that concern masking; those of the other parts are fixed."""

    removed: ClassVar[Mapping[str, Any]] = {
        "focus": 0.0,
        "selection": "topk",
        "threshold": 1.0,
        "target": "standardized",
    }
    alpha: float = field(default=1.0, init=False)
    beta: float = field(default=0.0, init=False)
    enhancement: bool = field(default=False, init=False)


class DMKD(DFMSD):
    r"""Dual masking: the term ``mask`` of `DFMSD`, without masking enhancement and the same in every stage.

    $L = s\,\mathrm{mean}(R - z(T))^2$ with $R = w_s G_s(X \cdot M_s) + w_c G_c(X \cdot M_c)$. With ``levels: cells``
    the levels are weighted as in MGD, which DMKD extends.

    Args:
        channels: of the aligned pair.
        options: see `DMKDOptions`.

    Source: reconstruction of DMKD (arXiv 2309.02719) from its abstract: parallel spatial and channel masks and
    "self-adjustable weighting".
    """

    name = "dmkd"
    rotates = False
    Options = DMKDOptions
