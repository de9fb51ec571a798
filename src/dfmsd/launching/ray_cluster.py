"""Tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dfmsd.errors import DfmsdError, foreign_message, one_line
from dfmsd.launching.config import RayConfig
from dfmsd.launching.process import Command, Ended
from dfmsd.utils.cachedir import GIB

ANSWER = 10.0
"""Seconds for a cluster to answer; Ray itself tries for minutes."""


class RayProcess:
    """The process of a task.

    Args:
        task: its future exit status.
    """

    def __init__(self, task: Any) -> None:
        self.task = task

    def poll(self) -> Ended | None:
        """Return how it has ended; None while it waits or runs."""
        if not ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            return Ended.from_status(ray.get(self.task))
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            return Ended(None, f"Ray ({type(cause).__name__ if isinstance(cause, RayError) else one_line(cause)})")

    def stop(self) -> None:
        """Interrupt the task, which lets the process save its work."""
        ray.cancel(self.task)

    def kill(self) -> None:
        """End it at once."""
        ray.cancel(self.task, force=True)

    def __str__(self) -> str:
        return f"task {self.task.task_id().hex()[:16]}"


class RayLauncher:
    """Runs each process in a task.

    Args:
        config: the resources of a task.

    Raises:
        DfmsdError: Ray does not accept an option, or no node of the cluster has so much.
    """

    elsewhere = True

    def __init__(self, config: RayConfig) -> None:
        self.config = config
        memory = None if config.memory is None else config.memory * GIB
        try:
            # a lost task is taken up again by `run_all`, as with every launcher
            self._task = ray.remote(Command.run).options(
                num_cpus=config.cpus, num_gpus=config.gpus, memory=memory, max_retries=0, **config.options
            )
        except (TypeError, ValueError) as error:
            raise DfmsdError(f"ray.options: Ray refuses them ({foreign_message(error)})") from error
        self._check_nodes()

    def start(self, arguments: Sequence[str], folder: Path, threads: int) -> RayProcess:
        """Start a task, see `Launcher.start`."""
        command = Command(tuple(arguments), folder, Path.cwd(), self.config.cpus)
        return RayProcess(self._task.remote(command))

    def continues(self, folder: Path) -> bool:
        """Return False: Ray ends the tasks of a command that was killed."""
        return False

    def _check_nodes(self) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        wanted = {"CPU": self.config.cpus, "GPU": self.config.gpus}
        if not any(all(node.get(key, 0) >= amount for key, amount in wanted.items()) for node in nodes):
            had = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise DfmsdError(
                f"ray: no node has {wanted['CPU']} CPUs and {wanted['GPU']:g} GPUs for a run, they have {had}; "
                "lower `ray.cpus` and `ray.gpus`"
            )


@contextmanager
def connected(config: RayConfig) -> Iterator[RayLauncher]:
    """Connect to a cluster, unless this process already is.

    Args:
        config: names the cluster.

    Raises:
        DfmsdError: it cannot be reached, or cannot carry out the runs.
    """
    former = ray.is_initialized()
    if not former:
        try:
            _check_answer(os.environ.get("RAY_ADDRESS", "") if config.address == "auto" else config.address)
            ray.init(config.address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise DfmsdError(
                f"ray.address: no cluster at {config.address!r} ({foreign_message(error)}); `ray start --head` starts "
                "one, and ray.address local uses this machine alone"
            ) from error
    try:
        yield RayLauncher(config)
    finally:
        if not former:
            ray.shutdown()


def _check_answer(address: str) -> None:
    """Check that something listens at an address with a host and a port.

    Raises:
        OSError: nothing does.
    """
    if place := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
        socket.create_connection((place[1].strip("[]"), int(place[2])), timeout=ANSWER).close()
