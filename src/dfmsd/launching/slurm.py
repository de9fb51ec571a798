"""Jobs of a SLURM cluster, by submitit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError, Popen
from tempfile import TemporaryDirectory

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.launching.config import SlurmConfig
from dfmsd.launching.process import Command, Ended, end, wait_for

JOBS = "slurm"
"""Folder of submitit's files beside the log of a process."""
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "PREEMPTED")
"""States of a job that will run or does so."""
LOOK = 1.0
"""Seconds between two looks at a job: each touches its folder, so that a shared disk shows what is new."""


class Submission:
    """What a job does: it runs a command, which saves its work before the job ends.

    SLURM signals the job's own process alone. After SIGTERM (`scancel`, preemption) the job ends without a result;
    before its time limit submitit calls `checkpoint`, and queues the job again.

    Args:
        command: to run.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self._process: Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command, and return its exit status."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._process = self.command.start()
        return wait_for(self._process)

    def checkpoint(self) -> DelayedSubmission:
        """Let the command save its work, and return what continues it."""
        if self._process is not None:
            end(self._process)
        return DelayedSubmission(Submission(self.command))


class SlurmProcess:
    """The process of a job.

    Args:
        job: of submitit.
    """

    def __init__(self, job: submitit.Job[int]) -> None:
        self.job = job
        self._stopped = False
        self._looked = float("-inf")
        self._ended: Ended | None = None

    def poll(self) -> Ended | None:
        """Return how it has ended; None while it is queued or runs."""
        if self._ended is None and time.monotonic() >= self._looked + LOOK:
            self._looked = time.monotonic()
            self._ended = self._look()
        return self._ended

    def _look(self) -> Ended | None:
        if not self.job.done():
            return None
        if not self._stopped or self.job.paths.result_pickle.exists():
            try:
                return Ended.from_status(self.job.result())
            except UncompletedJobError:  # it was killed, or could not start the command
                pass
        return Ended(None, f"SLURM ({self.job.state}, {self.job.paths.stderr})")

    def stop(self) -> None:
        """Cancel the job, which saves its work first."""
        self._stopped = True
        self._looked = float("-inf")
        if isinstance(self.job, submitit.LocalJob):  # whose `cancel` does not leave it the time to
            if not self.job.done():
                os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)

    def kill(self) -> None:
        """Cancel the job; SLURM kills one that does not end."""
        self.job.cancel(check=False)

    def __str__(self) -> str:
        return f"job {self.job.job_id}"


class SlurmLauncher:
    """Submits each process as a job.

    Args:
        config: the resources of a job.

    Raises:
        DfmsdError: submitit does not accept an option.
    """

    elsewhere = True

    def __init__(self, config: SlurmConfig) -> None:
        self.config = config
        with TemporaryDirectory() as folder:
            self._executor(Path(folder), "dfmsd")

    def start(self, arguments: Sequence[str], folder: Path, threads: int) -> SlurmProcess:
        """Submit a process, or take over its job, see `Launcher.start`."""
        if job := self._former_job(folder):
            return SlurmProcess(job)
        local = self.config.cluster == "local"
        command = Command(tuple(arguments), folder, Path.cwd(), threads if local else self.config.cpus)
        executor = self._executor(folder / JOBS, f"dfmsd-{folder.parent.name}-{folder.name}")
        try:
            return SlurmProcess(executor.submit(Submission(command)))
        except (UncompletedJobError, CalledProcessError, OSError) as error:
            raise DfmsdError(f"slurm: the job was refused ({foreign_message(error)}); correct `slurm`") from error

    def continues(self, folder: Path) -> bool:
        """Return whether the job that an earlier command has submitted for a folder is queued or runs."""
        return self._former_job(folder) is not None

    def _former_job(self, folder: Path) -> submitit.Job[int] | None:
        submitted = (folder / JOBS).glob("*_submitted.pkl") if self.config.cluster == "slurm" else ()
        newest = max(submitted, key=lambda file: file.stat().st_mtime, default=None)
        if newest is None:
            return None
        job: submitit.Job[int] = submitit.SlurmJob(folder / JOBS, newest.name.partition("_")[0])
        if job.paths.result_pickle.exists():
            return None
        return job if str(job.get_info().get("State", "")).startswith(ALIVE) else None

    def _executor(self, folder: Path, name: str) -> submitit.AutoExecutor:
        config = self.config
        try:
            executor = submitit.AutoExecutor(folder, cluster=config.cluster)
            executor.update_parameters(
                name=name,
                nodes=1,
                tasks_per_node=1,
                timeout_min=max(1, round(config.hours * 60)),
                gpus_per_node=config.gpus or None,
                cpus_per_task=config.cpus,
                mem_gb=config.memory,
                slurm_partition=config.partition,
                slurm_account=config.account,
                **config.options,
            )
        except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise DfmsdError(f"slurm.options: submitit refuses them ({foreign_message(error)})") from error
        return executor
