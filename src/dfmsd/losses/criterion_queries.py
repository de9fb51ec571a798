"""One method on the predictions of two detectors' queries, which have no levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.losses.criterion import Criterion
from dfmsd.losses.functional import full_precision
from dfmsd.losses.method import QueryMethod, QueryPair
from dfmsd.types import FeaturePyramid, Queries


class QueryCriterion(Criterion):
    """Compare the predictions of two detectors' queries; it has no levels, no alignment and no parameters.

    Args:
        method: class of the loss.
        options: of the method.
        weight: factor on every term; None takes the method's published one.
    """

    def __init__(self, method: type[QueryMethod], options: object, weight: float | None = None) -> None:
        nn.Module.__init__(self)  # without levels there is nothing to pair and align
        self.basis = None
        self.pairs = ()
        self.resize = "student"
        self.weight = method.default_weight if weight is None else weight
        self.align, self.methods = nn.ModuleList(), nn.ModuleList()
        self.method = method(0, options)
        self.terms = self.method.terms
        self.diagnostics = {}

    @property
    def feature_terms(self) -> tuple[str, ...]:
        """None."""
        return ()

    def forward(
        self, student: FeaturePyramid, teacher: FeaturePyramid, *, queries: QueryPair | None = None, **context: Any
    ) -> dict[str, Tensor]:
        """Compute named, weighted scalars whose sum is the loss.

        Args:
            student: not used.
            teacher: not used.
            queries: the predictions.
            context: not used.

        Returns:
            ``<term>/queries`` -> scalar in float32 (float64 for float64 predictions), also under autocast.

        Raises:
            DfmsdError: ``queries`` is None.
        """
        pair = self.method.require(queries, "queries")
        with torch.autocast(pair.student.logits.device.type, enabled=False):
            exact = QueryPair(*(Queries(*map(full_precision, side)) for side in pair))
            return {f"{name}/queries": self.weight * value for name, value in self.method.compare(exact).items()}
