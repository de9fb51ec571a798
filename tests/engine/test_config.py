from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfmsd import losses
from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig, RunConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.saved_config import same_run, to_yaml, write_config
from dfmsd.errors import DfmsdError
from dfmsd.losses import DFMSDOptions
from dfmsd.runfolder import RunFolder

STAGES = [StageConfig(epochs=2, teacher="a", loss={"alpha": 2.0}), StageConfig(epochs=3, teacher="b", fresh=False)]
UNLABELED = DataConfig(unlabeled="more")
PLAIN = [StageConfig(epochs=1, teacher="a")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "optim.lr: 0.0 is out of range"),
        ({"lr": float("nan")}, "optim.lr: nan"),
        ({"weight_decay": -0.1}, "optim.weight_decay: -0.1"),
        ({"warmup": -1}, "optim.warmup: -1"),
        ({"clip": float("nan")}, "optim.clip: nan"),
    ],
)
def test_optimiser_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        OptimConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_every": 0}, "eval_every: 0 is below 1"),
        ({"devices": 0}, "devices: 0 is below 1"),
        ({"num_nodes": 0}, "num_nodes: 0 is below 1"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"seed": 2**32}, "seed: 4294967296"),
    ],
)
def test_run_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        RunConfig(out="x", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": []}, "stages: the list is empty"),
        ({"stages": [StageConfig(1, ["a", "a"])]}, r"stages\.0\.teacher: a is there twice"),
        ({"stages": [StageConfig(1, [])], "inherit": True}, "inherit: the first stage has no teacher"),
        ({"stages": [StageConfig(epochs=0)]}, r"stages\.0\.epochs: 0 is below 1"),
        ({"loss": {"name": "dfmst"}}, "loss.name: unknown loss 'dfmst'; there is .*dfmsd"),
        ({"loss": {"alfa": 1.0}}, "loss.alfa: no option of dfmsd; did you mean 'alpha'"),
        ({"stages": [STAGES[0], StageConfig(3, "b", {"taw": 1.0})]}, r"stages\.1: loss.taw: .*did you mean 'tau'"),
        ({"loss": [{"name": "pkd"}, {"name": "pkd"}], "stages": PLAIN}, "^loss: pkd is there twice"),
        ({"loss": [], "stages": PLAIN}, "^loss: the list is empty"),
        ({"loss": [{"name": "pkd"}]}, r"^stages\.0: loss.name: missing; over a list of losses"),
        ({"stages": [StageConfig(1, "a", [])]}, r"^stages\.0: loss: the list is empty"),
        (
            {"stages": [StageConfig(1, "a", [{"name": "dmkd"}, {}])]},
            r"^stages\.0: loss: dmkd and dfmsd both have a term",
        ),
        ({"balance": 0.0}, "balance: 0.0 is not above 0"),
        ({"data": UNLABELED, "stages": [StageConfig(2)]}, "^data.unlabeled: .* teach nothing without a teacher"),
        ({"data": UNLABELED, "loss": [{"name": "pkd"}, {"name": "crosskd"}], "stages": PLAIN}, "crosskd compares"),
    ],
)
def test_an_impossible_distillation_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        DistillConfig(**{"out": "x", "stages": STAGES, **values})


def test_training_without_epochs_is_refused_by_the_name_that_the_user_knows() -> None:
    with pytest.raises(DfmsdError, match=r"^epochs: 0 is below 1"):
        TrainConfig(out="x", epochs=0)


def test_a_loss_without_a_name_is_dfmsd() -> None:
    assert DistillConfig(out="x", stages=STAGES, loss={"alpha": 2.0}).loss == {"name": "dfmsd", "alpha": 2.0}


def test_the_baseline_keeps_everything_but_the_teachers() -> None:
    optim = OptimConfig(schedule="restart")
    config = DistillConfig(out="x", data=UNLABELED, stages=STAGES, balance=0.5, seed=3, optim=optim)
    baseline = config.without_teachers()
    assert baseline.data.unlabeled is None
    assert [(stage.teacher, stage.epochs, stage.loss) for stage in baseline.stages] == [(None, 2, {}), (None, 3, {})]
    assert baseline.balance is None
    assert baseline.epochs == config.epochs == 5
    assert replace(baseline, data=UNLABELED, stages=config.stages, balance=0.5) == config


def test_training_is_a_distillation_without_a_teacher() -> None:
    model = DetectorConfig(backbone="resnet18")
    config = TrainConfig(out="x", model=model, epochs=7, seed=3, deliver="best", optim=OptimConfig(lr=0.1))
    same = config.as_distillation()
    assert (same.student, same.stages) == (model, [StageConfig(epochs=7)])
    assert all(getattr(same, name) == getattr(config, name) for name in RunConfig.__dataclass_fields__)


def test_a_written_config_is_read_again_as_the_same(tmp_path: Path) -> None:
    distil = DistillConfig(
        out="x",
        data=DataConfig("somewhere", scale_jitter=(0.5, 2.0), workers=2),
        student=DetectorConfig(pretrained="weights.safetensors"),
        stages=[*STAGES, StageConfig(epochs=1, teacher=["a", "b"])],
        loss={"name": "dfmsd", "beta": 0.5},
        balance=0.25,
        optim=OptimConfig(name="sgd", schedule="restart"),
        precision="bf16",
        seed=4,
    )
    train = TrainConfig(out="x", model=DetectorConfig(pretrained=True), epochs=3)
    for config in (distil, train):
        write_config(config, tmp_path)
        again = read_config(type(config), tmp_path / "config.yaml")
        assert to_yaml(again) == to_yaml(config)
        assert same_run(again, tmp_path)
        assert same_run(config, tmp_path)
        if isinstance(config, DistillConfig):
            again.loss, again.stages = config.loss, config.stages  # whose losses have all their options written out
        assert again == config


def test_a_run_stays_what_it_was_when_a_default_of_its_loss_changes(tmp_path: Path, monkeypatch: Any) -> None:
    own = [StageConfig(epochs=1, teacher="a", loss={"name": "mgd", "weight": 2.0}), StageConfig(epochs=1, teacher="b")]
    config = DistillConfig(out="x", stages=own, loss={"name": "dfmsd", "alpha": 0.5})
    write_config(config, tmp_path)
    assert same_run(replace(config, loss={"name": "dfmsd", "alpha": 0.5, "ratio": 0.5}), tmp_path)
    assert not same_run(replace(config, loss={"name": "dfmsd"}), tmp_path)
    baseline = DistillConfig(out="x", stages=PLAIN).without_teachers()
    place = tmp_path / "baseline"
    place.mkdir()
    write_config(baseline, place)

    @dataclass(frozen=True)
    class Younger(DFMSDOptions):
        ratio: float = 0.4

    monkeypatch.setattr(losses.DFMSD, "Options", Younger)
    assert not same_run(config, tmp_path)
    assert same_run(replace(config, loss={"name": "dfmsd", "alpha": 0.5, "ratio": 0.5}), tmp_path)
    assert same_run(baseline, place)  # where nobody teaches no loss is meant


def test_a_run_with_an_option_that_is_no_more_is_another(tmp_path: Path) -> None:
    config = DistillConfig(out="x", stages=STAGES)
    (tmp_path / "config.yaml").write_text(to_yaml(config).replace("  channel_ratio:", "  channel_share:"))
    assert not same_run(config, tmp_path)


def test_a_run_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    config = TrainConfig(out="here", epochs=3)
    assert not RunFolder(tmp_path).exists
    write_config(config, tmp_path)
    assert RunFolder(tmp_path).exists
    assert same_run(replace(config, out="there"), tmp_path)
    assert not same_run(replace(config, seed=1), tmp_path)
    assert not same_run(config.as_distillation(), tmp_path)


def test_a_run_from_before_stages_had_several_teachers_is_the_same(tmp_path: Path) -> None:
    stages = "[{epochs: 2, teacher: a, loss: {}, fresh: true}, {epochs: 1, teacher: null, loss: {}, fresh: true}]"
    content = yaml.safe_load(to_yaml(DistillConfig(out="x", stages=PLAIN)))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**content, "stages": yaml.safe_load(stages)}))
    config = DistillConfig(out="x", stages=[StageConfig(epochs=2, teacher="a"), StageConfig(epochs=1)])
    assert same_run(config, tmp_path)
    assert read_config(DistillConfig, tmp_path / "config.yaml").stages == config.stages
    other = [StageConfig(epochs=2, teacher=["a", "b"]), StageConfig(epochs=1)]
    assert not same_run(replace(config, stages=other), tmp_path)


def test_a_run_from_before_a_key_existed_is_the_same_with_its_default(tmp_path: Path) -> None:
    config = DistillConfig(out="x", stages=STAGES)
    content = yaml.safe_load(to_yaml(config))
    for key in ("teacher_cache", "teacher_cache_dtype", "teacher_cache_gib"):
        del content[key]
    del content["data"]["cache_gib"], content["student"]["frozen_stride"], content["optim"]["clip"]
    content["data"]["cache"] = True
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert same_run(config, tmp_path)
    assert not same_run(replace(config, teacher_cache="ram"), tmp_path)
    assert not same_run(replace(config, student=DetectorConfig(frozen_stride=4)), tmp_path)
    assert not same_run(replace(config, data=DataConfig(cache="disk")), tmp_path)
    assert not same_run(replace(config, data=DataConfig(cache=False)), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": DataConfig(scale_jitter=(0.5, 2.0))}, "teacher_cache: data.scale_jitter shows other pixels in every"),
        ({"data": DataConfig(pad="batch")}, "teacher_cache: with data.pad `batch` the frame, and with it a feature"),
        ({"teacher_cache": "tape"}, "teacher_cache and teacher_cache_dtype: expected .*, got 'tape' and 'float16'"),
        ({"teacher_cache_dtype": "float64"}, "got 'ram' and 'float64'"),
        ({"teacher_cache_gib": 0.0}, "teacher_cache_gib: 0.0 is out of range"),
        ({"teacher_cache_gib": float("nan")}, "teacher_cache_gib: nan is out of range"),
    ],
)
def test_a_cache_that_would_be_wrong_or_useless_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        DistillConfig(out="x", stages=STAGES, **{"teacher_cache": "ram", **values})


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_a_cache_goes_with_every_flip_and_a_baseline_has_none(flip: float) -> None:
    config = DistillConfig(out="x", stages=STAGES, data=DataConfig(flip=flip), teacher_cache="disk")
    assert config.without_teachers().teacher_cache is None
    DistillConfig(out="x", stages=STAGES, data=DataConfig(flip=flip, scale_jitter=(0.5, 2.0), pad="batch"))


@pytest.mark.parametrize(
    ("written", "cache"), [("on", "ram"), ("off", "off"), ("true", "ram"), ("ram", "ram"), ("disk", "disk")]
)
def test_the_image_cache_is_a_word_or_a_truth_value(tmp_path: Path, written: str, cache: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"out: x\ndata: {{cache: {written}}}\nteacher_cache: null\nstages: [{{epochs: 1}}]\n")
    config = read_config(DistillConfig, file)
    assert config.data.cache == cache
    write_config(config, tmp_path)
    assert read_config(DistillConfig, file) == config


def test_yaml_keeps_the_order_of_the_fields() -> None:
    assert to_yaml(TrainConfig(out="x")).startswith("out: x\ndata:\n  root: digits\n")
