"""Configuration of launchers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dfmsd.utils.coerce import check_positive, check_range, coerce_fields

LauncherName = Literal["local", "slurm", "ray"]


@dataclass
class SlurmConfig:
    """Each run as a job of a SLURM cluster.

    Args:
        partition: of the cluster; null leaves the choice to the cluster.
        account: that pays for the jobs, if the cluster asks for one.
        hours: time limit of a job; a run that takes longer is saved, and its job queued again.
        gpus: of a run.
        cpus: of a run.
        memory: of a run in GiB; null leaves it to the cluster.
        options: further parameters of submitit, such as ``{slurm_qos: high, slurm_constraint: a100}``.
        cluster: ``local`` runs the jobs on this machine, without SLURM, to try them out.
    """

    partition: str | None = None
    account: str | None = None
    hours: float = 24.0
    gpus: int = 1
    cpus: int = 4
    memory: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        """Convert the values to their types, and check their ranges.

        Raises:
            DfmsdError: a value has the wrong type or is out of range.
        """
        coerce_fields(self, "slurm.")
        check_positive(self, ("hours",) if self.memory is None else ("hours", "memory"), "slurm.")
        check_range(self, ("gpus",), "slurm.", minimum=0)
        check_range(self, ("cpus",), "slurm.", minimum=1)


@dataclass
class RayConfig:
    """Each run as a task of a Ray cluster.

    Args:
        address: of the cluster, such as ``10.0.0.1:6379`` or ``ray://10.0.0.1:10001``; ``auto`` is ``RAY_ADDRESS`` or
            the cluster that this machine belongs to, ``local`` starts one on this machine for this command.
        gpus: of a run; a fraction lets runs share a GPU.
        cpus: of a run.
        memory: of a run in GiB; null reserves none.
        options: further options of Ray's tasks, such as ``{resources: {a100: 1}}``.
    """

    address: str = "auto"
    gpus: float = 1.0
    cpus: int = 4
    memory: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Convert the values to their types, and check their ranges.

        Raises:
            DfmsdError: a value has the wrong type or is out of range.
        """
        coerce_fields(self, "ray.")
        check_positive(self, () if self.memory is None else ("memory",), "ray.")
        check_range(self, ("gpus",), "ray.", minimum=0)
        check_range(self, ("cpus",), "ray.", minimum=1)


class Launching(Protocol):
    """The keys of a config that say where its runs are carried out."""

    launcher: LauncherName
    slurm: SlurmConfig
    ray: RayConfig
