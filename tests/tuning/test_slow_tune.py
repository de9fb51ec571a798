"""Searches with real runs in real processes, which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from dfmsd.launching.config import SlurmConfig
from dfmsd.tuning import tuner
from dfmsd.tuning.config import TuneConfig
from dfmsd.tuning.storage import open_storage

MakeTune = Callable[..., TuneConfig]
SPACE = {"plan": ["config", "T1"], "basis": None, "lr": None, "pairing": None, "inherit": None, "balance": [1.0, 2.0]}
SEARCH = """
import sys
from pathlib import Path
from dfmsd.engine.configfile import read_config
from dfmsd.tuning import tuner
from dfmsd.launching.config import SlurmConfig
from dfmsd.tuning import tuner
from dfmsd.tuning.config import TuneConfig
tuner.finish = lambda *_: None  # the search alone
tuner.tune(read_config(TuneConfig, Path(sys.argv[1])), trials=2, allow_weak_teacher=True)
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def written(tune_config: MakeTune, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a config of two epochs, with a search's folder of the given name."""

    def write(name: str) -> Path:
        stage = replace(tune_config(tmp_path).stages[0], epochs=2)
        config = tune_config(tmp_path / name / "out", SPACE, stages=[stage])
        (tmp_path / name).mkdir()
        (tmp_path / name / "tune.yaml").write_text(yaml.safe_dump(asdict(config)))
        return tmp_path / name / "tune.yaml"

    return write


def trials_of(file: Path) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(f"sqlite:///{file.parent}/out/study.db")
    return optuna.load_study(storage=storage, study_name="out").trials


def told(file: Path) -> list[Any]:
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in trials_of(file)]


def test_killed_search_ends_like_one_that_was_not(written: Callable[[str], Path]) -> None:
    whole, killed = written("whole"), written("killed")
    subprocess.run([sys.executable, "-c", SEARCH, str(whole)], check=True)
    run = killed.parent / "out" / "trials" / "0000"
    with subprocess.Popen([sys.executable, "-c", SEARCH, str(killed)]) as process:
        while not (run / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (run / "metrics.json").exists()
    subprocess.run([sys.executable, "-c", SEARCH, str(killed)], check=True)
    assert told(killed) == told(whole)
    assert (run / "worker.log").read_text().count("pre-flight") == 1  # it was resumed


def test_two_processes_share_an_sqlite_file(written: Callable[[str], Path]) -> None:
    file = written("shared")
    processes = [subprocess.Popen([sys.executable, "-c", SEARCH, str(file)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    trials = trials_of(file)
    assert [trial.number for trial in trials] == [0, 1]
    assert all(trial.state.is_finished() for trial in trials)
    assert len({trial.user_attrs["process"] for trial in trials}) == 2


def test_command_ends_with_the_files_of_a_search(written: Callable[[str], Path]) -> None:
    file = written("command")
    flags = ["--config", str(file), "--trials", "1", "--allow-weak-teacher"]
    line = [sys.executable, "-m", "dfmsd", "tune", *flags]
    done = subprocess.run(line, check=True, stderr=subprocess.PIPE, text=True)
    assert "The best configuration is config" in " ".join(done.stderr.split())
    out = file.parent / "out"
    assert {"best.yaml", "report.html", "study.csv", "study.db"} <= {path.name for path in out.iterdir()}
    assert (out / "final" / "best" / "report.html").exists()
    again = subprocess.run([*line], check=True, stderr=subprocess.PIPE, text=True)
    assert "The best configuration is config" in " ".join(again.stderr.split())


def test_a_search_with_jobs_makes_the_teachers_and_runs_the_trials_in_them(
    tune_config: MakeTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stage = replace(tune_config(tmp_path).stages[0], epochs=2)
    slurm = SlurmConfig(cluster="local", cpus=1, gpus=0)
    config = tune_config(tmp_path / "out", SPACE, stages=[stage], launcher="slurm", slurm=slurm)
    result = tuner.tune(config, trials=1, jobs=2, allow_weak_teacher=True)
    assert result is not None
    assert result.winner == "config"
    assert len(trials_of(tmp_path / "tune.yaml")) == 1
    jobs = {path.parent.parent.relative_to(tmp_path / "out") for path in tmp_path.rglob("slurm/*_result.pkl")}
    runs = {path.parent.relative_to(tmp_path / "out") for path in tmp_path.rglob("metrics.json")}
    assert jobs == runs | {Path("preparation")}
