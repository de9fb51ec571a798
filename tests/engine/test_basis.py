"""Runs whose teachers are rotated into another's channels."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfmsd.detectors import load_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.run import distill
from dfmsd.engine.saved_config import same_run
from dfmsd.errors import Stopped
from dfmsd.runfolder import RunFolder
from dfmsd.visualization.criteria import stage_criteria

MakeDistill = Callable[..., DistillConfig]


def config_of(make: MakeDistill, teachers: tuple[str, str], out: Path, **values: Any) -> DistillConfig:
    stages = [StageConfig(1, teachers[0]), StageConfig(2, teachers[1], basis="former")]
    return make(out, stages=stages, eval_every=9, **values)


def quietly(config: DistillConfig, **options: Any) -> RunFolder:
    return RunFolder(distill(config, allow_weak_teacher=True, check_images=1, **options).run)


@pytest.fixture(scope="module")
def rotated(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    return quietly(config_of(distill_config, tiny_teachers, tmp_path_factory.mktemp("runs") / "rotated"))


def test_the_fit_is_written_for_every_level(rotated: RunFolder) -> None:
    basis = rotated.read_basis()
    assert basis is not None
    assert basis.keys() == {"2"}
    assert basis["2"].keys() == {"p2", "p3", "p4", "p5", "p6"}
    assert all(level["reference"] == "former" for level in basis["2"].values())
    assert all(abs(level[when]) <= 1 for level in basis["2"].values() for when in ("before", "after"))


def test_a_run_stopped_within_a_rotated_stage_resumes_to_the_same_bits(
    rotated: RunFolder,
    distill_config: MakeDistill,
    tiny_teachers: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopping(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 3:  # the first one of the second stage
                signal.raise_signal(signal.SIGINT)
            super().on_train_batch_end(trainer, *args, **kwargs)

    config = config_of(distill_config, tiny_teachers, tmp_path / "stopped")
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Stopping)
    with pytest.raises(Stopped):
        quietly(config)
    monkeypatch.undo()
    resumed = quietly(config, resume=True)
    first, second = load_file(rotated.weights_file), load_file(resumed.weights_file)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert json.loads(resumed.basis_file.read_text()) == json.loads(rotated.basis_file.read_text())


def test_the_pictures_of_a_run_use_its_basis(rotated: RunFolder, tiny_teachers: tuple[str, str]) -> None:
    student, teacher = load_detector(rotated.path), load_detector(tiny_teachers[1])
    (stage,) = stage_criteria(str(rotated), student, tiny_teachers[1], teacher)
    assert (stage.stage, stage.trained) == (2, True)
    assert stage.criterion.basis is not None
    assert stage.criterion.basis.fitted


def test_a_new_student_learns_alone_before_its_basis_is_fitted(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    stages = [StageConfig(2, tiny_teachers[1], basis="student")]
    run = quietly(distill_config(tmp_path / "run", stages=stages, eval_every=9, loss={"name": "pkd"}))
    with run.log_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["pkd/p3"] != "" for row in rows] == [False, True, True, True]  # a quarter of four steps


def test_a_run_from_before_there_were_bases_is_still_the_same(rotated: RunFolder, tmp_path: Path) -> None:
    text = rotated.config_file.read_text()
    (tmp_path / "config.yaml").write_text(text.replace("  basis: own\n", ""))
    config = DistillConfig(**{**rotated.read_config(), "out": str(tmp_path)})
    assert same_run(config, tmp_path)
