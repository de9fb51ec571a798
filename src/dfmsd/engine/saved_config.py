"""Run configs as YAML, and whether a saved one describes the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dfmsd.data import DataConfig
from dfmsd.data.config import PROBABILITIES
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.runconfig import COMPUTE_DTYPES, RunConfig
from dfmsd.errors import DfmsdError, listed
from dfmsd.losses import replace_loss, resolve_loss
from dfmsd.runfolder import RunFolder
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.files import write_text
from dfmsd.utils.removed import drop_removed

C = TypeVar("C", bound=RunConfig)

SHOWN_KEYS = 4
"""How many keys a message names."""
FREE_ON_RESUME: dict[str, Any] = {
    "out": None,
    "patience": None,
    "max_hours": None,
    "checkpoint_every": None,
    "skip_nonfinite": 0,
    "logger": "tensorboard",
}
"""Keys whose values may change when a run is resumed."""
WITHOUT_EFFECT = ("data.workers", "data.cache", "data.cache_gib", "teacher_cache_gib")
"""Keys of the machine rather than the run: they may change too, since the result has the same bits."""
BEFORE: dict[str, Any] = {"balance_schedule": "constant"}
"""What runs did before these keys existed, where that is not today's default."""
CACHES = ("ram", "disk")
"""Values of ``teacher_cache`` with the same result."""


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return a config as plain values, with every loss option written out."""
    return _with_loss_options(asdict(config))


def to_yaml(config: RunConfig) -> str:
    """Serialize a config, with every loss option written out so that later changes of defaults do not affect it."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def write_config(config: RunConfig, run: Path) -> None:
    """Write a config into a run folder."""
    write_text(RunFolder(run).config_file, to_yaml(config))


def same_run(config: RunConfig, run: Path) -> bool:
    """Return whether the config saved in a run folder describes this run, see `differing_keys`."""
    return not differing_keys(config, run)


def refuse_another(config: RunConfig, run: RunFolder, expected: str, remedy: str) -> None:
    """Refuse a folder with another run than that of a config.

    Args:
        config: of the run that is expected there.
        run: its folder, which may not exist yet.
        expected: the run in words, such as ``this config describes``.
        remedy: the end of the message.

    Raises:
        DfmsdError: the folder holds another run; the message names the keys that differ.
    """
    if run.exists and (keys := differing_keys(config, run.path)):
        raise DfmsdError(f"{run} holds another run than {expected}, differing in {listed(keys, SHOWN_KEYS)}; {remedy}")


def differing_keys(config: RunConfig, run: Path) -> list[str]:
    """Return the keys, such as ``optim.lr``, in which a run differs from the config saved in a folder.

    `FREE_ON_RESUME` and `WITHOUT_EFFECT` aside. Both sides are compared with every key and loss option written out. The
    saved values count, so a run stays the same when a default changes, and where it has chosen a near teacher itself.
    Keys that an older file lacks are assumed to have today's defaults, but for those of `BEFORE`. The keys of a file
    that this version cannot read are unknown: it differs in ``a key of another version``.
    """
    saved = RunFolder(run).read_config()
    sections: dict[str, Any] = {name: type(value) for name, value in vars(config).items() if is_dataclass(value)}
    try:
        saved = drop_removed(saved, getattr(config, "removed", {}))
        defaults = {f.name: f.default for f in fields(config) if f.name not in saved and f.default is not MISSING}
        before = {name: value for name, value in BEFORE.items() if name in defaults}
        current: dict[str, Any] = yaml.safe_load(to_yaml(as_started(config, run)))
        nested = {name: {**asdict(section()), **saved.get(name, {})} for name, section in sections.items()}
        nested["data"] = _with_augmentation(nested["data"])
        current["data"] = _with_augmentation(current["data"])
        stages = [{**asdict(StageConfig(epochs=1)), **stage} for stage in saved.get("stages", [])]
        former = _with_loss_options({**defaults, **before, **saved, **nested, **({"stages": stages} if stages else {})})
    except (DfmsdError, TypeError, KeyError, AttributeError):  # a loss or option that no longer exists, or no config
        return ["a key of another version"]
    former, current = ({**side, **FREE_ON_RESUME} for side in (former, current))
    if former.get("teacher_cache") in CACHES and current.get("teacher_cache") in CACHES:
        current["teacher_cache"] = former["teacher_cache"]
    return [key for key in _differences(former, current) if key not in WITHOUT_EFFECT]


def _differences(former: Any, current: Any, key: str = "") -> Iterator[str]:
    """Yield the innermost keys whose values differ; a list of another length differs as a whole."""
    if isinstance(former, list) and isinstance(current, list) and len(former) == len(current):
        former, current = dict(enumerate(former)), dict(enumerate(current))
    if isinstance(former, dict) and isinstance(current, dict):
        for name in {**former, **current}:
            yield from _differences(former.get(name), current.get(name), f"{key}.{name}" if key else str(name))
    elif former != current:
        yield key


def as_started(config: C, run: Path) -> C:
    """Return a config with the precision and near teachers that a run has chosen, where it leaves these to the run."""
    saved = RunFolder(run).read_config()
    if config.precision == AUTO and saved.get("precision") in COMPUTE_DTYPES:
        config = replace(config, precision=saved["precision"])
    stages = saved.get("stages")
    if not isinstance(config, DistillConfig) or not isinstance(stages, list) or len(stages) != len(config.stages):
        return config
    pairs = zip(config.stages, stages, strict=True)
    return replace(config, stages=[_with_chosen(stage, old) for stage, old in pairs])


def _with_chosen(stage: StageConfig, saved: Any) -> StageConfig:
    chosen = saved.get("near", False) if isinstance(saved, dict) else None
    if stage.near == AUTO and (chosen is False or isinstance(chosen, dict)):
        return replace(stage, near=chosen)
    if isinstance(stage.near, NearConfig) and isinstance(chosen, dict):
        given = {name: value for name, value in asdict(stage.near).items() if value is not None}
        return replace(stage, near=NearConfig(**{**chosen, **given}))
    return stage


def _with_augmentation(values: dict[str, Any]) -> dict[str, Any]:
    """Return the data's values with the switches of the preset in place of its name, and all keys of `pseudo`."""
    data = DataConfig(**values)
    switches = dict.fromkeys([*PROBABILITIES, "scale_jitter", "augment"]) | data.augmentation
    # older files have a bool as `cache`, and may lack keys of `pseudo`
    return {**values, "cache": data.cache, "pseudo": asdict(data.pseudo), **switches}


def _with_loss_options(values: dict[str, Any]) -> dict[str, Any]:
    """Write out every option of the losses in a config, unless it has no teachers."""
    stages = values.get("stages", [])
    if not any(stage["teacher"] for stage in stages):
        return values
    loss = values["loss"]
    resolved = [
        {**stage, "loss": resolve_loss(replace_loss(loss, stage["loss"])) if stage["loss"] else {}} for stage in stages
    ]
    return {**values, "loss": resolve_loss(loss), "stages": resolved}
