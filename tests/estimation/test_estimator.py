from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.helpers.finder import draw_images
from tests.helpers.fixtures import STUDENT, TINY_BACKBONE

from dfmsd.data import DataConfig
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.saved_config import to_yaml
from dfmsd.errors import DfmsdError
from dfmsd.estimation import schedules
from dfmsd.estimation.assumptions import assumptions
from dfmsd.estimation.estimator import Estimate, estimate, untrained_task
from dfmsd.estimation.schedules import GPUS, ImageFlops
from dfmsd.estimation.tables import print_estimate
from dfmsd.utils.durations import HOUR, describe_duration

Make = Callable[..., DistillConfig]
CLASSES = ("square", "disc")


@pytest.fixture(scope="module", autouse=True)
def _small_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "SIDES", (64, 128))
        yield


@pytest.fixture(scope="module")
def found(_small_images: None, distill_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    """Estimate of two stages with the teachers cached in RAM, each part timed once."""
    out = tmp_path_factory.mktemp("estimate") / "run"
    result = estimate(distill_config(out, teacher_cache="ram"), seconds=0)
    assert not out.exists()
    return result


def printed(found: Estimate) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_estimate(found, console)
    return console.export_text()


def test_limits_and_accumulation_are_told(found: Estimate) -> None:
    assert "max_hours" not in printed(found)
    optim = replace(found.config.optim, effective_batch=3 * found.config.data.batch_size)
    config = replace(found.config, max_hours=0.7 * found.prediction.hours, optim=optim)
    text = printed(replace(found, config=config))
    assert "h end the run after about 2 of its 3 epochs" in text
    assert "one of the 3 batches of a step, counted, batch of 4" in text


def test_pseudo_labels_are_timed_and_train_the_student(
    distill_config: Make, tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    folder = draw_images(tmp_path / "more")
    data = DataConfig(str(tiny_root), image_size=64, batch_size=4, unlabeled=str(folder))
    labeled = replace(data, pseudo=PseudoConfig("auto", tiny_teachers[1], flip=True))
    config = distill_config(tmp_path / "run", data=labeled, stages=[StageConfig(1)])
    result = estimate(config, seconds=0)
    assert result.sizes["labeling_images"] == 3 + 8
    assert result.parts_ms["label"] > 0
    assert result.prediction.labeling_s > 0
    alone = estimate(replace(config, data=data.labeled_only()), seconds=0)
    assert result.costs[0].student.forward == pytest.approx(2 * alone.costs[0].student.forward)
    text = printed(result)
    assert f"of these, pseudo-labels of {tiny_teachers[1]}: " in text
    assert "Every image of `data.unlabeled` counts as one with pseudo-labels." in text


def test_estimate_has_counts_times_and_hours(found: Estimate) -> None:
    assert found.frame == (64, 64)
    assert [cost.teacher is not None for cost in found.costs] == [True, True]
    fcos, faster_rcnn = found.cache_bytes
    assert fcos == 2 * 32 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
    assert faster_rcnn == 2 * 16 * (16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1)  # from stride 4 on
    assert all(value > 0 for value in found.parts_ms.values())
    assert found.prediction.steps == 3 * 2
    assert found.coco_hours.keys() == GPUS.keys()
    hours = found.coco_hours["T4"]
    assert hours["2x"] == pytest.approx(2 * hours["1x"])


def test_step_is_predicted_from_timed_parts(found: Estimate) -> None:
    ms = found.parts_ms
    last = ms["student"] + ms["1/loss"] + ms["1/update"] + ms["load"]
    step = found.prediction.stages[0].step_ms
    flips = found.config.data.augmentation["flip"]
    missing = 2 * flips * (1 - flips)  # images that the second epoch flips for the first time
    teacher = missing * ms["1/stored"] + (1 - missing) * ms["1/cached"]
    assert step == pytest.approx(last + teacher)


def test_json_contains_everything(found: Estimate) -> None:
    content = json.loads(json.dumps(found.as_json()))
    assert content["config"]["student"]["backbone"] == TINY_BACKBONE
    assert content["costs"][0]["student"]["forward"] == found.costs[0].student.forward
    assert content["costs"][1]["levels"]["p3"]["method"]["backward"] > 0
    assert content["prediction"]["stages"][0]["step_ms"] == found.prediction.stages[0].step_ms
    assert content["parts_ms"] == found.parts_ms
    assert content["coco_hours"]["A100 SXM"].keys() == {"1x", "2x"}
    assert content["assumptions"] == assumptions(found.config)
    assert content["environment"]["packages"]["torch"]


def test_tables_show_parts_prediction_hours_and_assumptions(found: Estimate) -> None:
    text = printed(found)
    for part in ("student", "teacher", "generate p3", "loss", "read from the cache", "clipping and optimizer"):
        assert part in text
    assert f"{found.costs[0].student.forward / 1e9:.3f}" in text
    assert f"{found.parts_ms['student']:.1f}" in text
    assert "H100 SXM" in text
    for line in assumptions(found.config):
        assert line[:100] in text


def test_a_stage_without_labels_costs_no_head(
    distill_config: Make, tmp_path: Path, tiny_teachers: tuple[str, str]
) -> None:
    stages = [StageConfig(1, tiny_teachers[0], labels=False), StageConfig(1, tiny_teachers[0])]
    found = estimate(distill_config(tmp_path / "run", stages=stages), seconds=0)
    assert found.costs[0].student.forward < found.costs[1].student.forward
    assert found.costs[0].student.backward < found.costs[1].student.backward
    assert found.costs[0].loss.forward == pytest.approx(found.costs[1].loss.forward, rel=0.01)  # masking enhancement
    assert found.prediction.evaluations == 1
    assert "student without labels" in printed(found)


def test_run_without_teachers(distill_config: Make, tmp_path: Path) -> None:
    found = estimate(distill_config(tmp_path / "run", stages=[StageConfig(epochs=1)]), seconds=0)
    assert found.cache_bytes == (0,)
    assert set(found.parts_ms) == {"student", "1/update", "load", "decode", "detect"}
    assert [set(flops) for flops in found.image_flops] == [{"student"}]
    assert "generate" not in printed(found)


def test_teacher_config_is_built_but_not_trained(
    distill_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainConfig(
        out=str(tmp_path / "teacher"),
        data=distill_config(tmp_path).data,
        model=DetectorConfig("faster_rcnn", TINY_BACKBONE, fpn_channels=16, pretrained=str(tmp_path / "missing.pth")),
    )
    (tmp_path / "teacher.yaml").write_text(to_yaml(recipe))
    monkeypatch.setattr("dfmsd.engine.run.train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("dfmsd.estimation.estimator.stage_flops", lambda *_: {"student": ImageFlops(1.0, 1.0)})
    config = distill_config(
        tmp_path / "run",
        stages=[StageConfig(epochs=1, teacher=str(tmp_path / "teacher.yaml"))],
        student=replace(STUDENT, pretrained=str(tmp_path / "missing.pth")),
    )
    found = estimate(config, seconds=0)
    assert found.costs[0].teacher is not None
    assert not (tmp_path / "teacher").exists()
    assert not (tmp_path / "run").exists()


def test_torchvision_weights_are_not_downloaded(
    distill_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    name = "FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1"
    config = distill_config(tmp_path / "run", stages=[StageConfig(epochs=1, teacher=name)], loss={"pairing": "index"})
    (teacher,) = untrained_task(config, CLASSES).every_teacher
    assert "zebra" in teacher.detector.class_names


def test_missing_data_and_teachers_are_rejected(distill_config: Make, tmp_path: Path) -> None:
    config = distill_config(tmp_path / "run", stages=[StageConfig(epochs=1, teacher=str(tmp_path / "nowhere"))])
    with pytest.raises(DfmsdError, match="no detector at"):
        estimate(config, seconds=0)
    config.data.root = str(tmp_path / "none")
    with pytest.raises(DfmsdError, match=r"data\.root"):
        estimate(config, seconds=0)


def test_processes_balance_and_cache_add_assumptions(found: Estimate) -> None:
    other = replace(found.config, devices=2, balance=0.5, teacher_cache="disk")
    assert len(assumptions(other)) == len(assumptions(found.config)) + 3
    machines = replace(found.config, devices=2, num_nodes=3)
    assert any(line.startswith("6 processes") for line in assumptions(machines))


def test_teachers_that_are_made_first_count(
    distill_config: Make, tmp_path: Path, tiny_teachers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfmsd.estimation.estimator.stage_flops", lambda *_: {"student": ImageFlops(1.0, 1.0)})
    near = NearConfig(backbone=TINY_BACKBONE, pretrained=str(tmp_path / "missing.pth"), epochs=5)
    config = distill_config(tmp_path / "run", stages=[StageConfig(epochs=9, teacher=tiny_teachers[1], near=near)])
    found = estimate(config, seconds=0)
    (folder,) = found.teachers
    assert [stage.epochs for stage in found.prediction.stages] == [3, 6]
    assert found.teachers[folder].prediction.steps == 5 * 2
    assert found.hours == pytest.approx(found.prediction.hours + found.teachers[folder].prediction.hours)
    text = printed(found)
    assert "is trained on the labels alone for 5 epochs of 8 images first" in text
    assert f"made first: {folder}, fcos on {TINY_BACKBONE}" in text
    assert f"predicted in total: {describe_duration(found.hours * HOUR)}" in text
    assert json.loads(json.dumps(found.as_json()))["teachers"][folder]["prediction"]["steps"] == 10
    assert [path.name for path in tmp_path.iterdir()] == []
    Path(folder).mkdir()
    Path(folder, "metrics.json").write_text("{}")
    assert estimate(config, seconds=0).teachers == {}
