"""The launchers by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from dfmsd.errors import DfmsdError
from dfmsd.launching.config import Launching
from dfmsd.launching.launcher import Launcher
from dfmsd.launching.local import LocalLauncher
from dfmsd.utils.extras import check_extra


def check_launcher(config: Launching) -> None:
    """Check that this machine has what the launcher needs, without starting anything.

    Args:
        config: names the launcher.

    Raises:
        DfmsdError: an extra is missing, or SLURM is.
    """
    if config.launcher == "slurm":
        check_extra("launcher: slurm", ["submitit"], "slurm")
        if config.slurm.cluster == "slurm" and shutil.which("sbatch") is None:
            raise DfmsdError(
                "launcher: slurm: this machine has no sbatch; use a login node of the cluster, or set slurm.cluster to "
                "local, which tries the jobs on this machine"
            )
    if config.launcher == "ray":
        check_extra("launcher: ray", ["ray"], "ray")


@contextmanager
def opened(config: Launching) -> Iterator[Launcher]:
    """Open the launcher that a config names.

    Args:
        config: names the launcher.

    Raises:
        DfmsdError: it cannot be used on this machine, or does not accept its options.
    """
    check_launcher(config)
    if config.launcher == "slurm":
        from dfmsd.launching.slurm import SlurmLauncher

        yield SlurmLauncher(config.slurm)
    elif config.launcher == "ray":
        from dfmsd.launching.ray_cluster import connected

        with connected(config.ray) as launcher:
            yield launcher
    else:
        yield LocalLauncher()
