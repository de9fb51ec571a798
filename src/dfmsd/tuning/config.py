"""Configuration of a search: that of a distillation, and what is varied in it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.launching.config import LauncherName, RayConfig, SlurmConfig

HOLDOUT = 0.2
"""Share of the training images that trials are measured on, unless ``data.holdout`` states one."""


@dataclass
class TuneSection:
    """What a search varies.

    Args:
        space: parameter -> a list of values, or ``{low: 0.5, high: 8, log: true}``; null keeps the config's value. A
            parameter is ``plan``, ``basis``, or a key of the config such as ``balance`` or ``optim.lr``. For those that
            are left out, see docs/tune.md.
    """

    space: dict[str, Any] = field(default_factory=dict)


@dataclass
class TuneConfig(DistillConfig):
    """Search for the settings of a distillation, with the keys of `DistillConfig` and what is varied in them.

    Args:
        out: folder of the search.
        tune: what is varied.
        launcher: where the runs are carried out: on this machine, or by SLURM or Ray on those of a cluster.
        slurm: jobs of the launcher slurm.
        ray: tasks of the launcher ray.
    """

    tune: TuneSection = field(default_factory=TuneSection)
    launcher: LauncherName = "local"
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check the values as those of a distillation, and that there is a teacher and one process.

        Raises:
            DfmsdError: a value is invalid.
        """
        super().__post_init__()
        if not self.teaches:
            raise DfmsdError("stages: none has a teacher, so there is no distillation to tune; name the teachers there")
        if self.devices * self.num_nodes > 1:
            raise DfmsdError("devices: each trial runs in one process; leave out devices and num_nodes, and use `jobs`")

    def as_written(self) -> DistillConfig:
        """Return the distillation that the config describes, on all training images."""
        values = {each.name: getattr(self, each.name) for each in fields(DistillConfig)}
        return DistillConfig(**{**values, "data": replace(self.data, holdout=0.0)})

    def as_trial(self) -> DistillConfig:
        """Return the same, measured on held-out training images at the epochs at which a trial may be ended."""
        config = self.as_written()
        data = replace(config.data, holdout=self.data.holdout or HOLDOUT)
        own: dict[str, Any] = {"logger": [], "eval_every": first_rung(config.epochs)}
        if config.patience is not None:
            own["patience"] = max(config.patience, own["eval_every"])
        return replace(config, data=data, **own)


def first_rung(epochs: int) -> int:
    """Return the epochs after which a trial is compared with others for the first time: a quarter of all.

    Args:
        epochs: of the run.
    """
    return max(1, epochs // 4)


def rungs(epochs: int) -> list[int]:
    """Return the epochs after which the worse half of the trials ends: a quarter of all, and twice as many.

    Args:
        epochs: of the run.
    """
    first = first_rung(epochs)
    return [rung for rung in (first, 2 * first) if rung < epochs]
