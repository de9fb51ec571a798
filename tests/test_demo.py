from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dfmsd import demo
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config

Configs = dict[str, TrainConfig | DistillConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def configs(folder: Path) -> Configs:
    return demo.demo_configs(folder)


def test_the_baseline_differs_from_the_distilled_run_by_its_teachers_alone(configs: Configs) -> None:
    assert list(configs) == ["teacher_a", "teacher_b", "baseline", "distilled"]
    distilled, baseline = configs["distilled"], configs["baseline"]
    assert isinstance(distilled, DistillConfig)
    assert [stage.teacher for stage in distilled.stages] == [configs[name].out for name in ("teacher_a", "teacher_b")]
    assert baseline == replace(distilled.without_teachers(), out=baseline.out)


def test_the_demo_runs_what_init_has_written(folder: Path, configs: Configs) -> None:
    chosen = read_config(DistillConfig, folder / "distilled.yaml")
    teacher = read_config(TrainConfig, folder / "distilled-teacher.yaml")
    distilled, first, second = (configs[name] for name in ("distilled", "teacher_a", "teacher_b"))
    assert isinstance(distilled, DistillConfig)
    assert isinstance(first, TrainConfig)
    assert isinstance(second, TrainConfig)
    assert (distilled.data, distilled.student, distilled.loss) == (chosen.data, chosen.student, chosen.loss)
    assert (distilled.balance, distilled.teacher_cache) == (chosen.balance, chosen.teacher_cache)
    assert (second.data, second.optim) == (teacher.data, teacher.optim)
    assert second.model == replace(teacher.model, backbone=demo.TEACHER_BACKBONE)
    assert first == replace(second, out=first.out, model=replace(second.model, arch="gfl"))
    assert distilled.epochs == chosen.epochs == sum(demo.STAGES)


def test_the_demo_prints_a_table_and_writes_a_report(
    configs: Configs,
    tmp_path: Path,
    finished_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = finished_run("demo", no_distill=True)
    (run / "environment.json").write_text('{"parameters": {"student": 12345}}')
    (run / "epochs.csv").write_text("epoch,step,stage,AP\n0,2,0,0.25\n")

    def train(*configs: TrainConfig | DistillConfig) -> None:
        for config in configs:
            shutil.copytree(run, config.out)

    own = {name: replace(config, out=str(tmp_path / "demo" / name)) for name, config in configs.items()}
    monkeypatch.setattr(demo, "demo_configs", lambda out: own)
    monkeypatch.setattr(demo, "_side_by_side", train)
    monkeypatch.setenv("COLUMNS", "120")
    assert demo.demo(tmp_path / "demo") == tmp_path / "demo" / "report.html"
    printed = capsys.readouterr().out
    assert all(
        name in printed for name in ("teacher_a", "teacher_b", "baseline", "distilled", "fcos test_efficientnet")
    )
    assert "<html" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
