"""Builder of losses from names and configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from dfmsd.errors import DfmsdError
from dfmsd.losses.basis import PyramidBasis
from dfmsd.losses.config import CRITERION_OPTIONS, LossConfig, check_loss, check_options, loss_parts, method_options
from dfmsd.losses.criterion import Criterion
from dfmsd.losses.criterion_queries import QueryCriterion
from dfmsd.losses.criterion_sum import CriterionSum
from dfmsd.losses.method import QueryMethod
from dfmsd.losses.registry import LOSSES
from dfmsd.types import LevelSpec


@overload
def build(
    loss: str,
    student_levels: Sequence[LevelSpec],
    teacher_levels: Sequence[LevelSpec],
    *,
    basis: PyramidBasis | None = None,
    **options: Any,
) -> Criterion: ...


@overload
def build(
    loss: LossConfig,
    student_levels: Sequence[LevelSpec],
    teacher_levels: Sequence[LevelSpec],
    *,
    basis: PyramidBasis | None = None,
    **options: Any,
) -> Criterion | CriterionSum: ...


def build(
    loss: LossConfig,
    student_levels: Sequence[LevelSpec],
    teacher_levels: Sequence[LevelSpec],
    *,
    basis: PyramidBasis | None = None,
    **options: Any,
) -> Criterion | CriterionSum:
    """Build a loss, or a sum of losses, between the pyramids of a student and a teacher.

    ```python
    build("dfmsd", student_levels, teacher_levels, alpha=1.0)
    build({"name": "dfmsd", "alpha": 1.0}, student_levels, teacher_levels)
    build([{"name": "pkd"}, {"name": "mgd", "ratio": 0.5}], student_levels, teacher_levels)
    ```

    Args:
        loss: a key of `dfmsd.losses.LOSSES`; or a mapping with ``name`` and options, or a list of these.
        student_levels: levels of the student.
        teacher_levels: levels of the teacher.
        basis: maps the teacher's pyramid before it is compared, to be fitted by `PyramidBasis.fit_to`.
        **options: of a single loss: ``pairing``, ``weight``, ``project`` and ``resize`` of `Criterion`, and those of
            the method (for ``dfmsd`` the fields of `DFMSDOptions`).

    Returns:
        A `Criterion`, or a `CriterionSum` for a list of several losses.

    Raises:
        DfmsdError: an unknown name or option, an impossible value, or fewer than two common levels.
    """
    if isinstance(loss, str):
        loss = {"name": loss, **options}
    elif isinstance(loss, Mapping):
        loss = {**loss, **options}
    elif options:
        raise DfmsdError(f"loss: {', '.join(options)} could belong to any loss of the list; set options in its entries")
    check_loss(loss)
    levels = teacher_levels if basis is None else basis.levels
    parts = {name: _build_one(name, student_levels, levels, part) for name, part in loss_parts(loss).items()}
    criterion = CriterionSum(parts) if len(parts) > 1 else next(iter(parts.values()))
    criterion.basis = basis
    return criterion


def _build_one(
    name: str, student_levels: Sequence[LevelSpec], teacher_levels: Sequence[LevelSpec], options: Mapping[str, Any]
) -> Criterion:
    options = check_options(name, **options)
    method = LOSSES[name]
    if issubclass(method, QueryMethod):
        return QueryCriterion(method, method_options(name, options), options.get("weight"))
    shared = {key: options[key] for key in CRITERION_OPTIONS if key in options}
    return Criterion(method, method_options(name, options), student_levels, teacher_levels, **shared)
