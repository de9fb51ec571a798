"""DMKD at one pyramid level: the dual feature masking of DFMSD, alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfmsd.losses.dfmsd import DFMSD, DFMSDOptions
from dfmsd.losses.generation import Generation
from dfmsd.losses.masking import Enhancement


@dataclass(frozen=True)
class DMKDOptions(DFMSDOptions):
    """The switches of `DFMSDOptions` that concern the masking; those of the other parts are fixed."""

    alpha: float = field(default=1.0, init=False)
    beta: float = field(default=0.0, init=False)
    generation: Generation = "full"
    enhancement: Enhancement = field(default="none", init=False)
    gamma: float = field(default=1.0, init=False)
    delta: float = field(default=1.0, init=False)
    ratio_step: float = field(default=0.1, init=False)
    ratio_max: float = field(default=0.75, init=False)


class DMKD(DFMSD):
    r"""`DFMSD` without semantic alignment, masking enhancement and stages: its term ``mask``, the same in every stage.

    $L = s\,\mathrm{mean}(R - target)^2$ with $R = w_s G_s(X \cdot M_s) + w_c G_c(X \cdot M_c)$; with ``levels: cells``
    its levels share the loss as those of MGD, which it comes from.

    Args:
        channels: of the aligned pair.
        options: see `DMKDOptions`.

    Source: reconstruction of DMKD (arXiv 2309.02719), whose abstract alone was available: parallel spatial and channel
    masks and "self-adjustable weighting".
    """

    Options = DMKDOptions
