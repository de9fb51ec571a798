from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.helpers.command import STUDENT, Command

from dfmsd.api.models import evaluate
from dfmsd.engine import folder
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import distill
from dfmsd.errors import DfmsdError
from dfmsd.reporting import run_report
from dfmsd.utils.lock import locked


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_that_is_being_written_is_left_alone(
    finished_run: Callable[..., Path], distill_config: Callable[..., DistillConfig], options: dict[str, bool]
) -> None:
    run = finished_run("live")
    with locked(run):
        before = sorted(run.rglob("*"))
        with pytest.raises(DfmsdError, match=r"live is being written by process .*; wait for it, or choose"):
            distill(distill_config(run), **options)
        assert sorted(run.rglob("*")) == before


def test_a_teacher_that_another_run_is_making_is_waited_for(dfmsd: Command, tiny_root: Path) -> None:
    data = {"root": str(tiny_root), "image_size": 64}
    dfmsd.write("teacher.yaml", {"data": data, "model": STUDENT, "out": "teacher", "epochs": 1})
    stages = [{"teacher": "teacher.yaml", "epochs": 1}]
    dfmsd.write("distill.yaml", {"data": data, "student": STUDENT, "stages": stages, "out": "run"})
    dfmsd.write("table.yaml", {"data": data, "student": STUDENT, "pairs": {"a": ["teacher.yaml"]}, "methods": ["pkd"]})
    with locked(dfmsd.folder / "teacher"):
        for command in (["distill", "--config", "distill.yaml"], ["check", "--config", "distill.yaml"]):
            assert "error: teacher is being written by process" in dfmsd.refusal(*command)
        (dfmsd.folder / "teacher" / "config.yaml").write_text(yaml.safe_dump({"data": data, "out": "teacher"}))
        named = ["--stages", "[{teacher: teacher, epochs: 1}]"]
        assert "error: teacher is being written" in dfmsd.refusal("distill", "--config", "distill.yaml", *named)


def test_a_run_that_is_being_written_can_be_read(finished_run: Callable[..., Path], tiny_root: Path) -> None:
    run = finished_run("live")
    with locked(run):
        assert evaluate(run, tiny_root, limit=1)
        assert run_report(run).exists()


def test_refused_input_deletes_no_older_run(
    finished_run: Callable[..., Path],
    distill_config: Callable[..., DistillConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = finished_run("older")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def fail() -> None:
        raise OSError("no such machine")

    monkeypatch.setattr(folder, "describe_environment", fail)
    with pytest.raises(OSError, match="no such machine"):
        distill(distill_config(run), overwrite=True, allow_weak_teacher=True, check_images=1)
    with pytest.raises(DfmsdError, match="AP"):
        distill(distill_config(run), overwrite=True, check_images=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_folder_that_is_a_link_is_overwritten_where_it_lies(
    finished_run: Callable[..., Path], distill_config: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(finished_run("far"))
    config = distill_config(tmp_path / "link")
    config.stages = config.stages[1:]
    result = distill(config, overwrite=True, allow_weak_teacher=True, check_images=1)
    assert (tmp_path / "link").is_symlink()
    assert (result.run / "metrics.json").exists()
    assert not list(result.run.glob(".*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_more_than_a_run_is_refused_and_left_alone(
    distill_config: Callable[..., DistillConfig],
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
) -> None:
    (tmp_path / "project" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "sub")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("server: {port: 80}")
    before = sorted([*tmp_path.rglob("*"), *tiny_root.rglob("*")])
    refused = {
        tiny_root: f"out: {tiny_root} is or holds {tiny_root}; a run needs a folder of its own",
        tiny_root.parent: f"is or holds {tiny_root}",
        Path("."): "is or holds the working folder",
        Path(".."): "is or holds the working folder",
        tmp_path / "other": r"config\.yaml is not the config of a run; choose another `out`",
    }
    for out, message in refused.items():
        with pytest.raises(DfmsdError, match=message):
            distill(distill_config(out), overwrite=overwrite)
    assert sorted([*tmp_path.rglob("*"), *tiny_root.rglob("*")]) == before
