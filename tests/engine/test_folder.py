from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.helpers.command import STUDENT, Command

from dfmsd.api.models import evaluate
from dfmsd.engine import folder
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.folder import check_folder
from dfmsd.engine.run import distill
from dfmsd.errors import DfmsdError
from dfmsd.reporting import run_report
from dfmsd.runfolder import RunFolder
from dfmsd.utils.lock import empty, locked


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
    data = {"root": str(tiny_root), "image_size": 64, "batch_size": 4}
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
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "config.yaml").write_text("out: dist")
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "config.yaml").write_text("key: !secret door")
    (tmp_path / "papers").mkdir()
    for name in "abcde":
        (tmp_path / "papers" / f"{name}.pdf").touch()
    before = sorted([*tmp_path.rglob("*"), *tiny_root.rglob("*")])
    refused = {
        tiny_root: f"out: {tiny_root} is or holds {tiny_root}; a run needs a folder of its own",
        tiny_root.parent: f"is or holds {tiny_root}",
        Path("."): "is or holds the working folder",
        Path(".."): "is or holds the working folder",
        **{
            tmp_path / name: rf"{name}/config\.yaml is not the config of a run; choose another `out`"
            for name in ("other", "build", "house")
        },
        tmp_path / "papers": r"papers holds a\.pdf, b\.pdf, c\.pdf and 2 more but no run; a run needs a folder",
    }
    for out, message in refused.items():
        with pytest.raises(DfmsdError, match=message):
            distill(distill_config(out), overwrite=overwrite)
    assert sorted([*tmp_path.rglob("*"), *tiny_root.rglob("*")]) == before


def test_a_run_may_begin_in_a_folder_with_hidden_files_alone(
    distill_config: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".gitkeep").touch()
    config = distill_config(tmp_path / "new")
    check_folder(RunFolder(tmp_path / "new"), config, resume=False, overwrite=False)
    (tmp_path / "new" / ".git").mkdir()
    with pytest.raises(DfmsdError, match=r"new holds \.git but no run"):
        check_folder(RunFolder(tmp_path / "new"), config, resume=False, overwrite=True)


def test_a_damaged_config_among_files_of_a_run_may_be_overwritten(
    distill_config: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("out: {")
    config = distill_config(tmp_path)
    with pytest.raises(DfmsdError, match="is not the config of a run"):
        check_folder(RunFolder(tmp_path), config, resume=False, overwrite=True)
    (tmp_path / "environment.json").write_text("{}")
    check_folder(RunFolder(tmp_path), config, resume=False, overwrite=True)


def test_a_run_that_is_killed_while_it_deletes_an_older_one_can_be_overwritten(
    finished_run: Callable[..., Path], distill_config: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run("older")
    deleted: list[str] = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: deleted.append(path.name))
    empty(run, last="config.yaml")
    assert deleted[-1] == "config.yaml"  # by which the rest is known to be a run's
    assert len(deleted) == 5
    check_folder(RunFolder(run), distill_config(run), resume=False, overwrite=True)
