"""Keyword settings of the run functions: the keys of the YAML files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np

from dfmsd.data.config import DataConfig
from dfmsd.detectors.config import DetectorConfig
from dfmsd.distillation.balance import BalanceSchedule
from dfmsd.distillation.cache import StorageType
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.configfile import parse_config, read_config
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.runconfig import Deliver, LoggerName, Precision, PrecisionChoice
from dfmsd.errors import DfmsdError, suggest
from dfmsd.losses import LossConfig
from dfmsd.utils.coerce import coerce

C = TypeVar("C")


class RunSettings(TypedDict, total=False):
    """Settings of every run; see `RunConfig`."""

    optim: OptimConfig
    seed: int
    precision: PrecisionChoice
    deliver: Deliver
    ema: float
    eval_every: int
    patience: int | None
    max_hours: float | None
    devices: int
    num_nodes: int
    checkpoint_every: int | None
    skip_nonfinite: int
    logger: LoggerName | list[LoggerName]
    compile: bool


class DistillSettings(RunSettings, total=False):
    """Settings of a distillation; see `DistillConfig`."""

    balance: float | None
    balance_schedule: Literal["auto", BalanceSchedule]
    sync_statistics: bool
    inherit: bool | str
    teacher_precision: Precision | None
    teacher_classes: dict[str, str] | None
    teacher_size: int | None
    teacher_cache: Literal["ram", "disk"] | None
    teacher_cache_dtype: StorageType
    teacher_cache_gib: float


class TrainChanges(RunSettings, total=False):
    """Every key of a `TrainConfig`."""

    out: str | Path
    data: str | Path | DataConfig
    model: DetectorConfig
    epochs: int


class DistillChanges(DistillSettings, total=False):
    """Every key of a `DistillConfig`."""

    out: str | Path
    data: str | Path | DataConfig
    student: DetectorConfig
    stages: list[StageConfig]
    loss: LossConfig


def resolve_config(kind: type[C], config: object, changes: Mapping[str, object]) -> C:
    """Read a config where its path is given, apply changes, and check every value.

    Args:
        kind: class of the config.
        config: such a config, or the path of its YAML file.
        changes: key -> value that replaces the config's.

    Raises:
        DfmsdError: wrong type, unknown key, or a value that the config refuses.
    """
    if isinstance(config, str | Path):
        config = read_config(kind, Path(config))
    if not isinstance(config, kind):
        raise DfmsdError(
            f"config: expected a {kind.__name__} or the path of its YAML file, got {type(config).__name__}"
        )
    values = {field.name: getattr(config, field.name) for field in fields(config)}  # type: ignore[arg-type]
    return build_config(kind, {**values, **changes})


def build_config(kind: type[C], values: Mapping[str, object]) -> C:
    """Build a config from Python values, as if they stood in a YAML file.

    Args:
        kind: class of the config.
        values: key -> value; ``data`` may be the path of the data set alone.

    Raises:
        DfmsdError: wrong type, unknown key, or a value that the config refuses.
    """
    data = values.get("data")
    if isinstance(data, str | Path):
        values = {**values, "data": DataConfig(root=str(data))}
    return parse_config(kind, {key: _plain(value) for key, value in values.items()})


def check_names(settings: Mapping[str, object], kind: type[Any], function: Any) -> None:
    """Refuse keywords that are neither settings of a run nor parameters of the function they were passed to.

    Raises:
        DfmsdError: such a keyword; the message names the nearest existing one.
    """
    known = [field.name for field in fields(kind)]
    for name in settings.keys() - set(known):
        parameters = [name for name in inspect.signature(function).parameters if name != "settings"]
        hint = suggest(name, [*parameters, *known], f"{kind.__name__} has {', '.join(sorted(known))}")
        raise DfmsdError(f"no setting {name!r}; {hint}")


def check_switches(**switches: object) -> None:
    """Refuse what is neither True nor False, such as the text ``"no"``.

    Raises:
        DfmsdError: names the parameter.
    """
    for name, value in switches.items():
        coerce(value, bool, name)


def _plain(value: Any) -> Any:
    """Convert a value to what a YAML file can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
