"""Several methods as one criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.losses.align import LevelPair
from dfmsd.losses.basis import PyramidBasis
from dfmsd.losses.criterion import Criterion
from dfmsd.types import FeaturePyramid


class CriterionSum(nn.Module):
    """Several methods as one criterion with the terms of all of them.

    Each method has its own alignment, pairing and weight.

    Args:
        parts: name -> criterion; the names become part of the parameters' names.

    Attributes:
        basis: as in `Criterion`, for all parts.
        pairs: the paired levels of all parts, one part after the other; a pair appears once for each part that has it.
        terms: names of the terms of all parts.

    Raises:
        DfmsdError: two parts have a term of the same name.
    """

    def __init__(self, parts: Mapping[str, Criterion]) -> None:
        super().__init__()
        self.basis: PyramidBasis | None = None
        self.parts = nn.ModuleDict(parts)
        self.pairs: tuple[LevelPair, ...] = tuple(chain.from_iterable(part.pairs for part in parts.values()))
        self.terms: tuple[str, ...] = tuple(chain.from_iterable(part.terms for part in parts.values()))
        check_terms({name: part.terms for name, part in parts.items()})

    @property
    def criteria(self) -> list[Criterion]:
        """The parts, in order."""
        return [part for part in self.parts.values() if isinstance(part, Criterion)]

    @property
    def feature_terms(self) -> tuple[str, ...]:
        """The terms that compare features, not predictions."""
        return tuple(chain.from_iterable(part.feature_terms for part in self.criteria))

    @property
    def align(self) -> list[nn.Module]:
        """The alignment of each of `pairs`."""
        return list(chain.from_iterable(part.align for part in self.criteria))

    @property
    def methods(self) -> list[nn.Module]:
        """The method of each of `pairs`."""
        return list(chain.from_iterable(part.methods for part in self.criteria))

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """``pearson/<level>`` as in `Criterion`; if several parts have a level, that of the first."""
        return {name: value for part in reversed(self.criteria) for name, value in part.diagnostics.items()}

    def forward(self, student: FeaturePyramid, teacher: FeaturePyramid, **context: Any) -> dict[str, Tensor]:
        """Compute the terms of all parts; arguments and result are those of `Criterion.forward`."""
        teacher = teacher if self.basis is None else self.basis(teacher)
        return {name: term for part in self.criteria for name, term in part(student, teacher, **context).items()}


def check_terms(terms: Mapping[str, Sequence[str]]) -> None:
    """Refuse methods whose terms would have the same name in a log.

    Args:
        terms: method -> names of its terms.

    Raises:
        DfmsdError: two methods have a term of the same name.
    """
    owners: dict[str, str] = {}
    for method, names in terms.items():
        for name in names:
            if name in owners:
                raise DfmsdError(f"loss: {owners[name]} and {method} both have a term {name!r}; leave out one of them")
            owners[name] = method
