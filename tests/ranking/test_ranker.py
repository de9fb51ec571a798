"""Rankings of tiny teachers: what is measured, the order, what is left as it was, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.helpers.command import STUDENT, Command

import dfmsd
from dfmsd.data import DataConfig
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import load_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.ranking.probe import probe_config, probe_data, spread
from dfmsd.ranking.ranker import RankedTeacher, Ranking, _ordered, rank
from dfmsd.ranking.readout import Readout
from dfmsd.ranking.tables import print_ranking

MakeDistill = Callable[..., DistillConfig]
HOLDOUT = 0.4
"""Of eight images: two or three of them."""


@pytest.fixture(scope="module")
def config(distill_config: MakeDistill, tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    return distill_config(tmp_path_factory.mktemp("rank") / "run")


@pytest.fixture(scope="module")
def ranking(config: DistillConfig) -> Ranking:
    return rank(config, steps=2, holdout=HOLDOUT)


def test_every_teacher_has_every_predictor(ranking: Ranking, tiny_teachers: tuple[str, str], tiny_root: Path) -> None:
    assert {row.name for row in ranking.teachers} == set(tiny_teachers)
    assert ranking.alone is not None
    assert ranking.steps == 2
    data = CocoDataModule(DataConfig(str(tiny_root), image_size=64, batch_size=4))
    for row in ranking.teachers:
        teacher = load_detector(row.name)
        assert row.probe is not None
        assert row.ap == evaluate(teacher, data.val_dataloader())["AP"]
        assert 0 < row.parameters < 1
        assert row.later is not None
        assert row.later != row.start
        assert all(value is not None and value <= 1 for value in (*row.start, *row.later))


def test_the_run_folder_is_left_alone(ranking: Ranking, config: DistillConfig) -> None:
    assert not Path(config.out).exists()


def test_a_single_teacher_is_compared_with_none_and_measured_as_among_others(
    ranking: Ranking, config: DistillConfig
) -> None:
    torch.manual_seed(5)
    found = rank(replace(config, stages=config.stages[1:]), steps=2, holdout=HOLDOUT)
    name = config.stages[1].teacher
    assert found == replace(ranking, teachers=tuple(row for row in ranking.teachers if row.name == name))
    assert found.alone is not None


def test_a_ranking_is_json(ranking: Ranking) -> None:
    content = json.loads(json.dumps(ranking.as_json()))
    assert content["teachers"][0]["start"].keys() == {"teacher", "student"}
    assert content["alone"] == ranking.alone


def test_without_steps_nothing_is_trained(config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfmsd.ranking.probe.fit", None)
    found = rank(config, steps=0, holdout=HOLDOUT)
    assert (found.alone, found.steps) == (None, 0)
    assert all(row.probe is None and row.later is None for row in found.teachers)
    read = [row.start.teacher or 0 for row in found.teachers]
    assert read == sorted(read, reverse=True)


def row(name: str, probe: float | None, start: float | None, later: float | None = None) -> RankedTeacher:
    readout = None if later is None else Readout(later, 0.0)
    return RankedTeacher(name, probe, Readout(start, 0.0), readout, 0.1, 0.5)


def test_probes_come_first_and_what_is_unknown_last() -> None:
    probed = [row("weak", 0.1, 0.9, 0.9), row("strong", 0.2, 0.1, 0.1)]
    assert [each.name for each in _ordered(probed)] == ["strong", "weak"]
    equal = [row("far", 0.1, 0.9, 0.1), row("near", 0.1, 0.1, 0.9)]
    assert [each.name for each in _ordered(equal)] == ["near", "far"]
    unprobed = [row("unknown", None, None), row("far", None, -0.5), row("near", None, 0.5)]
    assert [each.name for each in _ordered(unprobed)] == ["near", "far", "unknown"]


def test_the_table_has_the_probe_without_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    print_ranking(Ranking((row("strong", 0.2, 0.1, 0.3), row("weak", 0.1, None, 0.2)), 0.15, 180, 40), console)
    lines = capsys.readouterr().out.splitlines()
    assert "probes: 180 steps, AP on 40 held-out training images" in lines[0]
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if "│" in line]
    assert cells == [
        ["strong", "20.0", "0.10 / 0.00", "0.30 / 0.00", "0.100", "50.0"],
        ["weak", "10.0", "- / 0.00", "0.20 / 0.00", "0.100", "50.0"],
        ["none", "15.0"],
    ]


def test_probes_use_the_stage_of_the_teacher_and_no_validation_image(config: DistillConfig) -> None:
    first, second = (stage.teachers[0] for stage in config.stages)
    stages = [config.stages[0], StageConfig(1, [first, second], loss={"name": "pkd"}, basis="former")]
    held = probe_data(config, steps=100, holdout=HOLDOUT, val_images=None)
    (stage,) = probe_config(replace(config, stages=stages), held, 100, second).stages
    assert (stage.teacher, stage.loss, stage.basis, stage.epochs) == (second, {"name": "pkd"}, "auto", 100)
    assert {record.path.parent.name for record in held.val.coco.records} == {"train"}
    assert not {r.path for r in held.val.coco.records} & {r.path for r in held.train.coco.records}
    alone = probe_config(replace(config, stages=[replace(stages[0], basis="student")]), held, 100, None)
    assert alone.stages == [StageConfig(100)]


def test_a_probe_of_a_large_data_set_uses_as_many_images_as_its_steps(config: DistillConfig) -> None:
    held = probe_data(config, steps=1, holdout=HOLDOUT, val_images=1)
    assert (len(held.train), held.num_labeled, len(held.val)) == (4, 4, 1)


def test_images_are_spread_over_the_data_set(config: DistillConfig) -> None:
    train = CocoDataModule(config.data).train.coco
    assert [record.id for record in spread(train, 4).records] == [record.id for record in train.records[::2]]
    assert len(spread(train, 100)) == len(train)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"stages": [StageConfig(1)]}, {}, "rank: no stage has a teacher; name those to order"),
        ({"stages": [StageConfig(1, "runs/none")]}, {}, "no detector at 'runs/none'"),
        ({}, {"steps": -1}, "rank: a probe needs 0 steps"),
        ({}, {"holdout": 0.9}, "rank: the held-out share must be above 0 and at most 0.5, got 0.9"),
        ({}, {"check_images": 0}, "check_images must be at least 1, got 0"),
        ({"loss": {"name": "pkd", "pairing": {"p99": "p3"}}}, {}, "teacher .*: loss.pairing: the student has no level"),
    ],
)
def test_bad_input_is_refused_before_any_training(
    config: DistillConfig,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("dfmsd.ranking.probe.fit", None)
    with pytest.raises(DfmsdError, match=message):
        rank(replace(config, **changes), **{"holdout": HOLDOUT, **options})


def test_torchrun_is_refused(config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DfmsdError, match="rank: runs in one process, not in 2"):
        rank(config)


def test_larger_images_for_the_teachers_are_refused(config: DistillConfig) -> None:
    with pytest.raises(DfmsdError, match="rank: teachers are read at the student's image size; leave out teacher_size"):
        rank(replace(config, teacher_size=96))


def test_python_takes_teachers_in_place_of_those_of_the_stages(
    config: DistillConfig, tiny_teachers: tuple[str, str]
) -> None:
    found = dfmsd.rank_teachers(
        config, [tiny_teachers[1], Path(tiny_teachers[1])], steps=0, stages=[StageConfig(1)], holdout=HOLDOUT
    )
    assert [row.name for row in found.teachers] == [tiny_teachers[1]]
    with pytest.raises(DfmsdError, match=r"no setting 'step'; did you mean steps\?"):
        dfmsd.rank_teachers(config, step=3)  # type: ignore[call-arg]


def flags(tiny_root: Path) -> list[str]:
    student = [word for key, value in STUDENT.items() for word in (f"--student.{key}", str(value))]
    data = ["--data.root", str(tiny_root), "--data.image_size", "64", "--data.batch_size", "4", "--data.holdout", "0.4"]
    return [*student, *data, "--out", "run"]


def test_the_command_ranks_teachers_given_by_flags(
    dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str]
) -> None:
    named = [word for teacher in tiny_teachers for word in ("--teacher", teacher)]
    status, out, _ = dfmsd("check", "--rank", "--rank-steps", "0", *flags(tiny_root), *named)
    assert status == 0
    assert "R2 at the start" in out
    assert not (dfmsd.folder / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--rank", "--stages", "[{epochs: 1}]"],
            "rank: no stage has a teacher; name those to order",
        ),
        (["--rank", "--teacher", "runs/none"], "no detector at 'runs/none'"),
        (["--rank", "--teacher", ""], "teacher has an empty name"),
        (["--rank", "--teacher", "a", "--rank-steps", "many"], "rank_steps: "),
        (["--teacher", "a", "--stages", "[{epochs: 1}]"], "--teacher: it belongs to --rank"),
        (["--rank-steps", "3", "--stages", "[{epochs: 1}]"], "--rank-steps: it belongs to --rank"),
    ],
)
def test_bad_flags_are_refused(dfmsd: Command, tiny_root: Path, arguments: list[str], message: str) -> None:
    assert message in dfmsd.refusal("check", *flags(tiny_root), *arguments)
