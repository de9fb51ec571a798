from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.changes import edit, move_box, shift_weights

from dfmsd.comparison import preparation, runner
from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runner import compare
from dfmsd.comparison.runs import PlannedRun
from dfmsd.comparison.step_cost import StepCost
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import load_detector
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import distill
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.runfolder import RunFolder
from dfmsd.utils.device import available_cores
from dfmsd.utils.lock import locked

MakeCompare = Callable[..., CompareConfig]
COSTS = {"none": StepCost(4.0, 100), "pkd": StepCost(6.0, 125)}


class InProcess:
    """Replacement of `run_all` that runs one after another in this process."""

    def __init__(self, train: Callable[[DistillConfig], object]) -> None:
        self.train = train
        self.made: list[str] = []
        self.fails: dict[str, str] = {}
        self.stops_at: int | None = None

    def __call__(self, runs: Sequence[PlannedRun], jobs: int, ended: Any, *arguments: Any) -> None:
        for run in runs:
            if len(self.made) == self.stops_at:
                raise KeyboardInterrupt
            if run.method.name in self.fails:
                ended(run, self.fails[run.method.name])
                continue
            self.train(run.config)
            self.made.append(str(run))
            ended(run, None)


def write_run(config: DistillConfig) -> None:
    """Write the config and metrics of a run without training it."""
    folder = RunFolder(Path(config.out))
    folder.path.mkdir(parents=True)
    write_config(config, folder.path)
    ap = 0.25 + 0.01 * config.seed + 0.02 * len(config.stages)
    metrics = {"AP": ap, "AP50": 0.5, "AP75": None, "per_class": {"square": ap, "disc": None}}
    folder.metrics_file.write_text(json.dumps(metrics))


def train(config: DistillConfig) -> None:
    distill(config, allow_weak_teacher=True, check_images=1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    made = InProcess(write_run)
    monkeypatch.setattr(runner, "run_all", made)
    monkeypatch.setattr(
        preparation, "measure_step_costs", lambda tasks, data: {n: COSTS.get(n, StepCost(5.0, 150)) for n in tasks}
    )
    return made


def rows_of(folder: Path) -> list[tuple[str, int]]:
    rows = json.loads((folder / "both" / "results.json").read_text())["rows"]
    return [(row["method"], row["seed"]) for row in rows]


def test_comparison_resumes_and_keeps_finished_runs(
    compare_config: MakeCompare, here: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = available_cores()  # one thread each
    config = compare_config(tmp_path, epochs=1, methods=["pkd", "dfmsd@T1+T2", "crosskd", "cwd"])
    with pytest.raises(DfmsdError, match="epochs must be at least the number of stages, 2, got 1"):
        compare(config, dry_run=True)
    config = compare_config(tmp_path, methods=["pkd", "dfmsd[ratio=0]@T1+T2", "crosskd", "cwd"])
    with pytest.raises(DfmsdError, match=r"measures AP .* in this pipeline, about 0"):
        compare(config)  # the teachers are not trained
    here.stops_at, here.fails = 2, {"cwd": "loss is not finite"}
    with pytest.raises(KeyboardInterrupt):
        compare(config, jobs=many, allow_weak_teacher=True)
    assert here.made == ["none, seed 0", "both: pkd, seed 0"]
    assert rows_of(tmp_path) == [("none", 0), ("pkd", 0)]
    assert "repeat the command to resume" in " ".join(capsys.readouterr().err.split())

    here.stops_at = None
    [found] = compare(config, jobs=many, allow_weak_teacher=True)
    assert here.made[2:] == ["both: dfmsd[ratio=0]@T1+T2, seed 0"]
    assert [(row.method, row.seed, row.variant) for row in found.rows] == [
        ("none", 0, False),
        ("pkd", 0, False),
        ("dfmsd[ratio=0]@T1+T2", 0, True),
    ]
    assert found.failed == {"both: cwd, seed 0": "loss is not finite"}
    assert found.skipped.keys() == {"crosskd"}
    said = " ".join(capsys.readouterr().err.split())
    assert "both: crosskd does not apply: stage 1" in said
    assert "cwd, seed 0 failed: loss is not finite" in said

    content = json.loads((tmp_path / "both" / "results.json").read_text())
    for row in content["rows"]:
        metrics = json.loads((Path(row["run"]) / "metrics.json").read_text())
        assert row["AP"] == metrics["AP"]
        assert row["epochs"] == 2
    data = CocoDataModule(config.data)
    for name, ap in content["teachers"].items():
        assert ap == (evaluate(load_detector(name), data.val_dataloader())["AP"] or 0.0)
    assert [(row["step_time"], row["peak_memory"]) for row in content["rows"]] == [(1.0, 1.0), (1.5, 1.25), (1.25, 1.5)]

    # later another seed of another method: the table keeps the earlier rows
    here.fails = {}
    compare(compare_config(tmp_path, methods=["fitnet"], seeds=[1]), jobs=many, allow_weak_teacher=True)
    assert here.made[3:] == ["none, seed 1", "both: fitnet, seed 1"]
    assert rows_of(tmp_path)[:2] == [("none", 1), ("fitnet", 1)]
    assert sorted(rows_of(tmp_path)[2:]) == [("dfmsd[ratio=0]@T1+T2", 0), ("none", 0), ("pkd", 0)]


def test_rows_of_a_teacher_that_the_pair_has_lost_leave_the_table(
    compare_config: MakeCompare, here: InProcess, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    many = available_cores()
    config = compare_config(tmp_path, methods=["none", "fitnet@T1", "dfmsd@T1+T2"])
    compare(config, jobs=many, allow_weak_teacher=True)
    fewer = compare_config(tmp_path, methods=["none"], pairs={"both": [tiny_teachers[0]]})
    compare(fewer, jobs=many, allow_weak_teacher=True)
    assert rows_of(tmp_path) == [("none", 0)]
    assert (tmp_path / "both" / "dfmsd@T1+T2" / "seed-0" / "metrics.json").exists()


def test_dry_run_lists_runs_and_writes_nothing(
    compare_config: MakeCompare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compare_config(tmp_path / "out", methods=["dfmsd@T1+T2"], epochs=12, pairs={"a": ["x.yaml", "y.yaml"]})
    with pytest.raises(DfmsdError, match=r"x\.yaml"):
        compare(config, dry_run=True)
    methods = ["dfmsd@T1+T2", "pkd@T1:1+T1&T2:3", "pkd@T1+T2[basis=former]"]
    assert compare(compare_config(tmp_path / "out", methods=methods, epochs=12), dry_run=True) == []
    said = capsys.readouterr().err
    assert "dfmsd@T1+T2" in said
    assert "4 T1, 8 T2" in said
    assert "pkd@T1:1+T1&T2:3" in said
    assert "3 T1, 9 T1&T2" in said
    assert " T2[basis=former]" in said
    assert "0 / 0 / 1" in said
    assert not (tmp_path / "out").exists()


def test_two_comparisons_cannot_share_a_folder(compare_config: MakeCompare, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(DfmsdError, match="is being written by process"):
        compare(compare_config(tmp_path))
    late = tmp_path / "none" / "seed-0"  # a run of a comparison that was killed
    with locked(late), pytest.raises(DfmsdError, match="seed-0 is being written by process"):
        compare(compare_config(tmp_path))
    with pytest.raises(DfmsdError, match="jobs must be at least 1, got 0"):
        compare(compare_config(tmp_path), jobs=0)


def test_runs_of_other_data_or_of_another_teacher_are_not_reused(
    compare_config: MakeCompare,
    here: InProcess,
    tiny_root: Path,
    tiny_teachers: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here.train = train
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_root, "data")
    shutil.copytree(tiny_teachers[0], "teacher")
    data = DataConfig("data", image_size=64, batch_size=4)
    config = compare_config(Path("out"), data=data, pairs={"both": ["teacher"]}, epochs=1)
    for expected in (2, 0):  # unchanged ones are
        before = len(here.made)
        compare(config, allow_weak_teacher=True)
        assert len(here.made) == before + expected

    annotations = Path("data/annotations/instances_val.json")
    original = annotations.read_text()
    edit(annotations, move_box)
    message = r"^out/none/seed-0 and 1 more: made with another version of data\.val; remove what is outdated, or choose"
    with pytest.raises(DfmsdError, match=message):
        compare(config, allow_weak_teacher=True)
    annotations.write_text(original)
    shift_weights(Path("teacher"))
    with pytest.raises(DfmsdError, match=r"^out/both/pkd/seed-0: made with another version of teacher teacher; remove"):
        compare(config, allow_weak_teacher=True)
    shutil.rmtree("out/both/pkd")
    compare(config, allow_weak_teacher=True)
    assert here.made[2:] == ["both: pkd, seed 0"]


@pytest.mark.slow
def test_every_method_trains_for_the_same_number_of_steps(
    compare_config: MakeCompare, here: InProcess, tmp_path: Path
) -> None:
    here.train = train
    config = compare_config(tmp_path, methods=["pkd", "dfmsd[ratio=0]@T1+T2"])
    [results] = compare(config, allow_weak_teacher=True)
    assert [row.method for row in results.rows] == ["none", "pkd", "dfmsd[ratio=0]@T1+T2"]
    for row in results.rows:
        folder = RunFolder(Path(row.run))
        assert (folder.read_metrics() or {})["AP"] == row.AP
        with folder.log_file.open() as file:
            assert len(list(csv.DictReader(file))) == 4  # 2 epochs of 2 steps
