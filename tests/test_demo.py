from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dfmsd import demo
from dfmsd.engine.config import DistillConfig, TrainConfig


def test_the_baseline_differs_from_the_distilled_run_by_its_teachers_alone(tmp_path: Path) -> None:
    configs = demo.demo_configs(tmp_path)
    assert list(configs) == ["teacher_a", "teacher_b", "baseline", "distilled"]
    distilled, baseline = configs["distilled"], configs["baseline"]
    assert isinstance(distilled, DistillConfig)
    assert isinstance(baseline, TrainConfig)
    assert [stage.teacher for stage in distilled.stages] == [configs[name].out for name in ("teacher_a", "teacher_b")]
    assert (baseline.model, baseline.epochs) == (distilled.student, distilled.epochs)
    assert (baseline.data, baseline.optim, baseline.seed) == (distilled.data, distilled.optim, distilled.seed)


def test_the_demo_prints_a_table_and_writes_a_report(
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

    monkeypatch.setattr(demo, "_side_by_side", train)
    monkeypatch.setattr(demo, "CocoDataModule", lambda data: None)
    monkeypatch.setenv("COLUMNS", "120")
    assert demo.demo(tmp_path / "demo") == tmp_path / "demo" / "report.html"
    printed = capsys.readouterr().out
    assert all(
        name in printed for name in ("teacher_a", "teacher_b", "baseline", "distilled", "fcos test_efficientnet")
    )
    assert "<html" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
