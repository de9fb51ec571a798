"""Launchers that cannot be used: refused in one line, before anything is written."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import comparison as comparison
from tests.cli.conftest import content as content
from tests.helpers.bad_input import dfmsd as dfmsd
from tests.helpers.command import Command

from dfmsd.errors import DfmsdError
from dfmsd.launching import choice
from dfmsd.launching.config import RayConfig, SlurmConfig

LOCAL = ("--launcher", "slurm", "--slurm.cluster", "local")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--launcher", "pbs"], "launcher: expected one of 'local', 'slurm', 'ray', got 'pbs'|launcher.*pbs"),
        (["--launcher", "slurm", "--slurm.cpus", "0"], r"slurm\.cpus must be at least 1, got 0"),
        (["--launcher", "slurm", "--slurm.hours", "0"], r"slurm\.hours must be above 0, got 0"),
        (["--launcher", "slurm", "--slurm.memory", "-1"], r"slurm\.memory must be above 0, got -1"),
        (["--launcher", "ray", "--ray.gpus", "-1"], r"ray\.gpus must be at least 0, got -1"),
        (["--slurm.time", "3"], r"slurm\.time"),
    ],
)
def test_a_bad_section_is_refused(dfmsd: Command, comparison: str, arguments: list[str], message: str) -> None:
    assert re.search(message, dfmsd.refusal("compare", "--config", comparison, *arguments))


def test_a_machine_without_sbatch_is_refused(dfmsd: Command, comparison: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "check_extra", lambda *_: None)
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    error = dfmsd.refusal("compare", "--config", comparison, "--launcher", "slurm")
    assert "launcher: slurm: this machine has no sbatch; use a login node of the cluster, or set slurm.cluster" in error


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_names_its_extra(
    dfmsd: Command, comparison: str, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("dfmsd.utils.extras._is_installed", lambda package: False)
    error = dfmsd.refusal("compare", "--config", comparison, "--launcher", name)
    assert f"launcher: {name} needs {package}: pip install 'dfmsd[{name}]'" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"slurm_colour": "red"}', "slurm.options: submitit refuses them (Unknown argument 'colour'"),
        ('{"nodes": 2}', "multiple values for keyword argument 'nodes'"),
        ('{"gpus": 2}', "slurm.options: submitit refuses them"),
    ],
)
def test_an_option_that_submitit_does_not_know_is_refused(
    dfmsd: Command, comparison: str, options: str, message: str
) -> None:
    pytest.importorskip("submitit")
    error = dfmsd.refusal("compare", "--config", comparison, *LOCAL, "--slurm.options", options)
    assert message in error


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_ray_that_does_not_answer_is_refused_soon(dfmsd: Command, comparison: str, prefix: str) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{prefix}127.0.0.1:{free.getsockname()[1]}"
    error = dfmsd.refusal("compare", "--config", comparison, "--launcher", "ray", "--ray.address", address)
    assert f"ray.address: no cluster at '{address}' ([Errno 111] Connection refused)" in error


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a program in front of those of this machine."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("state", "taken"),
    [("PENDING", True), ("RUNNING", True), ("CANCELLED by 0", False), ("COMPLETED", False), ("NODE_FAIL", False)],
)
def test_the_job_of_a_killed_command_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, taken: bool
) -> None:
    submitit: Any = pytest.importorskip("submitit")
    from dfmsd.launching.slurm import SlurmLauncher

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    fake(tmp_path / "bin", monkeypatch, "sacct", f"echo 'JobID|State|NodeList'; echo '7|{state}|n1'")
    fake(tmp_path / "bin", monkeypatch, "scancel", f'echo "$@" >>{tmp_path}/cancelled')
    fake(tmp_path / "bin", monkeypatch, "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    launcher = SlurmLauncher(SlurmConfig(gpus=0))
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    assert not launcher.continues(run)
    (run / "slurm" / "7_submitted.pkl").touch()
    submitit.SlurmJob.watcher.clear()
    assert launcher.continues(run) is taken
    if not taken:
        with pytest.raises(DfmsdError, match=r"slurm: the job was refused \(.*invalid partition"):
            launcher.start(["-m", "work"], run, 1)
        return
    process = launcher.start(["-m", "work"], run, 1)
    assert str(process) == "job 7"
    assert process.poll() is None
    process.stop()
    assert (tmp_path / "cancelled").read_text() == "7\n"


def test_resources_have_ranges() -> None:
    assert SlurmConfig(memory=8).memory == 8.0
    assert RayConfig(gpus=0.5).gpus == 0.5
    with pytest.raises(DfmsdError, match=r"slurm\.cluster must be one of slurm, local, got 'lsf'"):
        SlurmConfig(cluster="lsf")  # type: ignore[arg-type]
