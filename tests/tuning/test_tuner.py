"""A whole search with runs that take no time, and what is refused before it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.helpers.command import Command
from tests.helpers.pages import Page
from tests.tuning.conftest import SPACE, FakeRuns, Killed, quality

import dfmsd as package
from dfmsd.data import DataConfig
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.saved_config import to_yaml
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.tuning import tuner
from dfmsd.tuning.config import TuneConfig, TuneSection
from dfmsd.tuning.outcome import TuneResult
from dfmsd.tuning.storage import open_storage
from dfmsd.utils.lock import is_locked

MakeTune = Callable[..., TuneConfig]


def searched(config: TuneConfig, trials: int = 6, **options: Any) -> TuneResult:
    storage = f"journal:///{config.out}.log"
    result = package.tune(config, trials=trials, allow_weak_teacher=True, storage=storage, **options)
    assert result is not None
    return result


def test_search_ends_with_the_best_config_beside_config_and_baseline(
    tune_config: MakeTune, fake: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tune_config(tmp_path / "out")
    result = searched(config)
    assert result.winner == "trial 5"
    assert {one.name: sorted(one.aps) for one in result.candidates} == {
        name: [0, 1] for name in ("trial 5", "config", "baseline")
    }
    assert set(result.final) == {"best", "config", "baseline"}
    assert fake.reports == [f"{name} on all training images" for name in ("best", "config", "baseline")]
    said = " ".join(capsys.readouterr().err.split())
    assert result.summary in said
    assert re.search(r"6 of 6 trials done, at most about \d+ s left", said)

    best = read_config(DistillConfig, tmp_path / "out" / "best.yaml")
    assert best == result.best
    assert (best.data.holdout, best.eval_every, best.logger) == (0.0, config.eval_every, config.logger)
    stages = [replace(stage, epochs=1) for stage in best.stages]
    again = package.distill(tmp_path / "out" / "best.yaml", stages=stages, allow_weak_teacher=True, report=False)
    assert again.run == tmp_path / "out" / "best"
    trained = read_config(DistillConfig, tmp_path / "out" / "final" / "trial-5" / "config.yaml")
    assert trained == replace(best, out=trained.out, eval_every=8)  # measured once
    baseline = read_config(DistillConfig, tmp_path / "out" / "final" / "trial-5-baseline" / "config.yaml")
    assert baseline == replace(trained.without_teachers(), out=baseline.out)

    with (tmp_path / "out" / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert {row["state"] for row in rows} == {"complete", "pruned"}
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written == result.as_json()
    assert (written["winner"], written["parameters"]["plan"]) == ("trial 5", rows[5]["plan"])
    assert written["held_out"]["trial 5"]["0"] == float(rows[5]["AP"])
    page = Page(tmp_path / "out" / "report.html")
    assert page.headings[2:5] == ["History", "Importance of the parameters", "Parallel coordinates"]
    assert [plot["traces"][0]["type"] for plot in page.plots] == ["scatter", "bar", "scatter"]
    finished = sum(row["state"] == "complete" for row in rows)
    assert sum(trace["mode"] == "lines" for trace in page.plots[2]["traces"]) == finished
    assert result.summary in page.html
    assert ["plan", "config, T1, T1+T2, T1&T2"] in page.cells
    assert not [reference for reference in page.references if reference.startswith("http")]

    left = {path.parent.name for path in (tmp_path / "out").rglob("*.ckpt")}
    assert left == {"best", "config", "trial-5", "trial-5-baseline"}  # of ordinary runs, which may be continued
    assert all(RunFolder(run).metrics_file.exists() for run in (tmp_path / "out" / "repeats").iterdir())
    begun = len(fake.begun)
    assert searched(config).summary == result.summary
    assert len(fake.begun) == begun


def test_a_search_that_is_stopped_leaves_the_table_of_its_trials(
    tune_config: MakeTune, fake: FakeRuns, tmp_path: Path
) -> None:
    fake.killed_at = 8 + 2 + 2 + 1  # in the fourth trial: the second and third end after two epochs
    with pytest.raises(Killed):
        searched(tune_config(tmp_path / "out"))
    with (tmp_path / "out" / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    ended = [run for run, _ in fake.begun[:-1]]
    assert len(ended) == 3
    assert [row["state"] for row in rows] == ["complete", "pruned", "pruned"]
    assert [f"trial {row['trial']}: {row['plan']}" for row in rows] == ended


def test_a_longer_search_trains_its_own_winner(tune_config: MakeTune, fake: FakeRuns, tmp_path: Path) -> None:
    config = tune_config(tmp_path / "out")
    short = searched(config, 1)
    assert short.winner == "config"
    long = searched(config, 6)
    assert long.winner == "trial 5"
    best, own, baseline = (long.final[name] for name in ("best", "config", "baseline"))
    assert own == short.final["best"]
    assert best == quality(replace(long.best, seed=config.seed))
    assert baseline == quality(long.best.without_teachers())


def test_the_baseline_has_the_settings_of_the_winner(tune_config: MakeTune, fake: FakeRuns, tmp_path: Path) -> None:
    space = {**SPACE, "plan": ["T1&T2"], "balance": [2], "lr": [0.01]}
    config = tune_config(tmp_path / "out", space)
    assert searched(config, 1).winner == "trial 0"
    for seed in (0, 1):
        run = tmp_path / "out" / "repeats" / f"trial-0-baseline-seed-{seed}"
        measured = read_config(DistillConfig, run / "config.yaml")
        assert (measured.optim.lr, measured.seed, measured.data.holdout) == (0.01, seed, 0.3)
        assert not any(stage.teachers for stage in measured.stages)


def test_config_that_no_trial_beats_wins(tune_config: MakeTune, fake: FakeRuns, tmp_path: Path) -> None:
    stages = [StageConfig(8, teacher=list(tune_config(tmp_path).stages[index].teachers[0] for index in (0, 1)))]
    space = {**SPACE, "plan": ["config", "T1"], "basis": None, "alpha": None}
    result = searched(tune_config(tmp_path / "out", space, stages=stages), 3)
    assert result.winner == "config"
    assert set(result.final) == {"best", "baseline"}
    assert "No trial was better than the config with both seeds together." in result.summary


def test_config_outside_the_space_is_measured_beside_it(tune_config: MakeTune, fake: FakeRuns, tmp_path: Path) -> None:
    result = searched(tune_config(tmp_path / "out", {**SPACE, "plan": ["T1"], "balance": [4, 6]}), 2)
    assert result.winner == "config"
    assert ("config, seed 0", 0) in fake.begun


def test_failing_repeat_ends_the_search_and_is_made_up_for(
    tune_config: MakeTune, fake: FakeRuns, tmp_path: Path
) -> None:
    fake.fails = {"config without teachers, seed 1": "no space left"}
    config = tune_config(tmp_path / "out")
    with pytest.raises(DfmsdError, match="config without teachers, seed 1 has failed: no space left; the search"):
        searched(config, 1)
    fake.fails = {}
    assert searched(config, 1).winner == "config"


def test_near_teacher_is_made_once_before_the_trials(tune_config: MakeTune, fake: FakeRuns, tmp_path: Path) -> None:
    [_, stage] = tune_config(tmp_path).stages
    near = NearConfig(backbone="test_resnet", pretrained=False, epochs=1)
    config = tune_config(tmp_path / "out", {**SPACE, "plan": None, "basis": None}, stages=[replace(stage, near=near)])
    result = searched(config, 2)
    [teacher] = (tmp_path / "out" / "teachers").glob("near-fcos-test_resnet-*")
    assert read_config(TrainConfig, teacher / "config.yaml").data.holdout == 0.3
    for trial in ("0000", "0001"):
        run = read_config(DistillConfig, tmp_path / "out" / "trials" / trial / "config.yaml")
        assert [each.teachers for each in run.stages] == [(str(teacher),), stage.teachers]
    assert [each.near for each in result.best.stages] == [near]  # of its own, on all images


@pytest.mark.parametrize(
    ("run", "former"),
    [
        ("trials/0000", "data.train"),
        ("repeats/config-seed-1", "data.val"),
        ("repeats/config-seed-1", "teacher {}"),
        ("final/config", "data.val"),
    ],
)
def test_search_is_not_continued_on_other_data_or_with_another_teacher(
    tune_config: MakeTune, fake: FakeRuns, tmp_path: Path, run: str, former: str
) -> None:
    config = tune_config(tmp_path / "out")
    former = former.format(config.stages[0].teacher)
    searched(config, 1)
    folder = RunFolder(tmp_path / "out" / run)
    folder.environment_file.write_text(json.dumps({"inputs": {former: "0"}}))
    begun = len(fake.begun)
    with pytest.raises(DfmsdError, match=f"^{folder}: made with another version of {former}; restore it, or choose"):
        searched(config)
    assert len(fake.begun) == begun


def test_storage_is_opened_by_one_process_at_a_time(
    tune_config: MakeTune, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held: list[bool] = []

    def opened(url: str) -> Any:
        held.append(is_locked(tmp_path / "out" / ".tune" / "opening"))
        return open_storage(url)

    monkeypatch.setattr(tuner, "open_storage", opened)
    searched(tune_config(tmp_path / "out"), 1)
    assert held == [True]


def test_second_process_says_what_it_waits_for(
    tune_config: MakeTune,
    fake: FakeRuns,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tuner, "is_locked", lambda folder: True)
    searched(tune_config(tmp_path / "out"), 1)
    said = " ".join(capsys.readouterr().err.split())
    assert "another process makes the teachers: waiting for it" in said
    assert "another process runs what follows the search: waiting for it" in said


def test_interrupted_search_says_how_to_go_on(
    tune_config: MakeTune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dfmsd.tuning.search.run_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searched(tune_config(tmp_path / "out"))
    assert "everything so far is kept; repeat the command to continue" in " ".join(capsys.readouterr().err.split())


def written(dfmsd: Command, config: TuneConfig, **changes: Any) -> str:
    values = asdict(config)
    return dfmsd.write("tune.yaml", {**values, **changes})


def test_dry_run_prints_space_and_hours_and_writes_nothing(
    tune_config: MakeTune, dfmsd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(dfmsd, tune_config(Path("out")))
    estimated: list[DistillConfig] = []

    def estimate(config: DistillConfig) -> Any:
        estimated.append(config)
        return SimpleNamespace(prediction=SimpleNamespace(hours=0.5))

    monkeypatch.setattr(tuner, "estimate", estimate)
    before = sorted(dfmsd.folder.rglob("*"))
    status, _, said = dfmsd("tune", "--config", file, "--trials", 20, "--jobs", 2, "--dry-run")
    assert status == 0
    assert re.search(r"loss.alpha +│ 0 to 3 +│ 1.0 ", said)
    assert "20 trials and the runs after them take at most about 7.2 h" in " ".join(
        said.split()
    )  # 29 runs, 2 at a time
    assert [each.data.holdout for each in estimated] == [0.0]
    assert sorted(dfmsd.folder.rglob("*")) == before


def test_bad_space_and_storage_are_refused_in_one_line(tune_config: MakeTune, dfmsd: Command) -> None:
    file = written(dfmsd, tune_config(Path("out"), {"alhpa": [0, 1]}))
    assert "tune.space.alhpa: there is no such key; parameters are plan, basis, " in dfmsd.refusal(
        "tune", "--config", file, "--trials", 1
    )
    file = written(dfmsd, tune_config(Path("out")))
    url = "postgresql://me:secret@nowhere.invalid/x"
    said = dfmsd.refusal("tune", "--config", file, "--trials", 1, "--storage", url)
    assert "storage: cannot open postgresql://me:***@nowhere.invalid/x" in said
    assert "secret" not in said
    assert "trials: missing; pass --trials, --hours or both" in dfmsd.refusal("tune", "--config", file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"hours": 0}, "hours must be above 0, got 0"),
        ({"trials": 1, "jobs": 0}, "jobs must be at least 1, got 0"),
        ({"trials": 1, "devices": 2}, "each trial runs in one process; leave out devices and num_nodes"),
        ({"trials": 1, "max_epochs": 2}, "no setting 'max_epochs'"),
    ],
)
def test_bad_budget_is_refused(tune_config: MakeTune, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        package.tune(tune_config(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_study_of_another_space_and_a_run_as_folder_are_refused(
    tune_config: MakeTune, fake: FakeRuns, dfmsd: Command, finished_run: Callable[..., Path]
) -> None:
    file = written(dfmsd, tune_config(Path("out")))
    assert dfmsd("tune", "--config", file, "--trials", 1, "--allow-weak-teacher")[0] == 0
    assert (dfmsd.folder / "out" / "study.db").exists()
    (dfmsd.folder / "elsewhere").mkdir()
    elsewhere = ["--out", "elsewhere/out", "--storage", "sqlite:///out/study.db"]
    said = dfmsd.refusal("tune", "--config", file, "--trials", 1, *elsewhere)
    assert "storage: its study out belongs to another folder than elsewhere/out" in said
    said = dfmsd.refusal("tune", "--config", file, "--trials", 1, "--tune.space", '{"alpha": [0, 1]}')
    assert "storage: its study out searches something else; space." in said
    run = finished_run("student")
    assert f"{run} holds a run" in dfmsd.refusal("tune", "--config", file, "--trials", 1, "--out", run)


def test_missing_optuna_names_the_extra(tune_config: MakeTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("dfmsd.utils.extras._is_installed", lambda package: False)
    with pytest.raises(DfmsdError, match=r"tune needs optuna: pip install 'dfmsd\[tune\]'"):
        package.tune(tune_config(tmp_path), trials=1)


def test_plain_distillation_is_a_config_of_a_search(
    distill_config: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    (tmp_path / "distill.yaml").write_text(to_yaml(distill_config(tmp_path / "run")))
    config = read_config(TuneConfig, tmp_path / "distill.yaml")
    assert config.tune == TuneSection()
    assert config.as_trial().data.holdout == 0.2


def test_config_without_teacher_is_refused(tune_config: MakeTune, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match="stages: none has a teacher, so there is no distillation to tune"):
        tune_config(tmp_path, stages=[StageConfig(2)])


def test_data_that_the_last_runs_would_find_bad_are_refused_before_the_first_trial(
    tune_config: MakeTune, fake: FakeRuns, tmp_path: Path, tiny_coco: Path
) -> None:
    config = tune_config(tmp_path / "out", data=DataConfig(str(tiny_coco), image_size=64, batch_size=2, holdout=0.3))
    file = tiny_coco / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(DfmsdError, match="so no AP can be measured"):
        searched(config)
    file.unlink()
    shutil.rmtree(tiny_coco / "val")
    with pytest.raises(
        DfmsdError, match=r"^data\.val: what a search finds is measured on val, which .* does not have;"
    ):
        searched(config)
    assert fake.begun == []


def test_one_image_cannot_be_held_out(tune_config: MakeTune, tmp_path: Path, tiny_coco: Path) -> None:
    file = tiny_coco / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] == 1]
    file.write_text(json.dumps(content))
    config = tune_config(tmp_path / "out", data=DataConfig(str(tiny_coco), image_size=64, batch_size=2))
    with pytest.raises(DfmsdError, match=r"data.holdout: a share of 0.2 holds out . of 1 images"):
        package.tune(config, trials=1)
