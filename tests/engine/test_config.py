from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dfmsd import losses
from dfmsd.comparison.config import CompareConfig
from dfmsd.data import DataConfig
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.runconfig import RunConfig
from dfmsd.engine.saved_config import as_started, differing_keys, same_run, to_yaml, write_config
from dfmsd.errors import DfmsdError
from dfmsd.losses import DFMSDOptions
from dfmsd.runfolder import RunFolder

STAGES = [StageConfig(epochs=2, teacher="a", loss={"alpha": 2.0}), StageConfig(epochs=3, teacher="b", fresh=False)]
UNLABELED = DataConfig(unlabeled="more")
PLAIN = [StageConfig(epochs=1, teacher="a")]


def test_a_tilde_is_the_home_directory_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = DistillConfig(
        out="~/run",
        data=DataConfig(root="~/data", unlabeled="~/photos"),
        student=DetectorConfig(init="~/start"),
        stages=[StageConfig(1, "~/a"), StageConfig(1, ["~/b", "mmdet:~/c.py,~/d.pth"])],
    )
    assert (config.out, config.data.root, config.data.unlabeled, config.student.init) == (
        "/home/me/run",
        "/home/me/data",
        "/home/me/photos",
        "/home/me/start",
    )
    assert [stage.teacher for stage in config.stages] == [
        "/home/me/a",
        ["/home/me/b", "mmdet:/home/me/c.py,/home/me/d.pth"],
    ]
    comparison = CompareConfig(out="~/cmp", pairs={"one": ["~/a"]}, methods=["pkd"])
    assert (comparison.out, comparison.pairs) == ("/home/me/cmp", {"one": ["/home/me/a"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "optim.lr must be above 0, got 0.0"),
        ({"lr": float("nan")}, "optim.lr must be above 0, got nan"),
        ({"weight_decay": -0.1}, "optim.weight_decay must be at least 0, got -0.1"),
        ({"warmup": -1}, "optim.warmup must be at least 0, got -1"),
        ({"clip": float("nan")}, "optim.clip must be at least 0, got nan"),
        ({"lr": "fast"}, "optim.lr must be a number or one of auto, got 'fast'"),
        ({"warmup": True}, "optim.warmup must be an integer, got True"),
        ({"backbone_lr": 0}, "optim.backbone_lr must be above 0, got 0"),
        ({"effective_batch": 0}, "optim.effective_batch must be at least 1, got 0"),
        ({"name": "adam"}, "optim.name must be one of auto, lamb, adamw, sgd, got 'adam'"),
    ],
)
def test_invalid_optimizer_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        OptimConfig(**values)


@pytest.mark.parametrize(
    ("optim", "images", "lr"),
    [
        ({}, 8, 2e-2),
        ({}, 32, 4e-2),
        ({"effective_batch": 128}, 16, 8e-2),
        ({"name": "adamw"}, 32, 6e-3),
        ({"name": "sgd"}, 16, 0.01),
        ({"name": "sgd", "effective_batch": 64}, 16, 0.04),
    ],
)
def test_an_automatic_learning_rate_follows_the_images_of_a_step(
    optim: dict[str, Any], images: int, lr: float, tmp_path: Path
) -> None:
    config = TrainConfig(out=str(tmp_path), optim=OptimConfig(**optim), data=DataConfig(batch_size=images))
    assert config.optim.lr == pytest.approx(lr)
    assert config.as_distillation().optim == config.optim
    write_config(config, tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optim"]["lr"] == config.optim.lr
    assert same_run(config, tmp_path)
    shared = TrainConfig(out="x", devices=2, optim=config.optim, data=DataConfig(batch_size=images // 2))
    assert shared.optim.lr == pytest.approx(lr)


@pytest.mark.parametrize(
    ("detector", "name", "lr"),
    [
        (DetectorConfig(), "lamb", 2e-2),
        (DetectorConfig(pretrained=True), "lamb", 1e-2),
        (DetectorConfig(init="runs/earlier"), "adamw", 1e-3),
        (DetectorConfig(arch="hf:model"), "adamw", 1e-3),
    ],
)
def test_the_optimizer_follows_from_the_detector(detector: DetectorConfig, name: str, lr: float) -> None:
    data = DataConfig(batch_size=8)
    trained = TrainConfig(out="x", data=data, model=detector)
    assert trained.optim.lr == pytest.approx(lr)
    assert trained.optim.name == name
    distilled = DistillConfig(out="x", data=data, student=detector, stages=[StageConfig(1, teacher="t")])
    assert distilled.optim.lr == pytest.approx(lr)
    assert distilled.without_teachers().optim == distilled.optim


def test_a_learning_rate_without_an_optimizer_is_one_of_adamw() -> None:
    assert TrainConfig(out="x", optim=OptimConfig(lr=1e-3)).optim.name == "adamw"
    assert TrainConfig(out="x", optim=OptimConfig("lamb", 1e-2)).optim.name == "lamb"


@pytest.mark.parametrize(
    ("name", "detector", "lr"),
    [
        ("lamb", DetectorConfig(pretrained=True), 1e-2),
        ("adamw", DetectorConfig(), 3e-3),
        ("adamw", DetectorConfig(pretrained="backbone.pth"), 3e-3),
        ("adamw", DetectorConfig(init="runs/earlier"), 1e-3),
        ("sgd", DetectorConfig(), 5e-3),
    ],
)
def test_an_optimizer_by_name_has_its_own_learning_rate(name: Any, detector: DetectorConfig, lr: float) -> None:
    config = TrainConfig(out="x", data=DataConfig(batch_size=8), model=detector, optim=OptimConfig(name))
    assert config.optim.lr == pytest.approx(lr)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_every": 0}, "^eval_every must be at least 1, got 0"),
        ({"optim": {"effective_batch": 24}}, "^optim.effective_batch must be a multiple of 16, .* 16 in 1 .*, got 24"),
        (
            {"optim": {"effective_batch": 48}, "devices": 2},
            "^optim.effective_batch must be a multiple of 32, .* got 48",
        ),
        ({"patience": 0}, "^patience must be at least 1, got 0"),
        ({"patience": 2, "eval_every": 3}, "^patience must be at least eval_every, 3, .*, got 2"),
        ({"max_hours": 0}, r"^max_hours must be above 0, got 0\.0"),
        ({"max_hours": float("nan")}, "^max_hours must be above 0, got nan"),
        ({"devices": 0}, "^devices must be at least 1, got 0"),
        ({"num_nodes": 0}, "^num_nodes must be at least 1, got 0"),
        ({"seed": -1}, "^seed must be in 0..4294967295, got -1"),
        ({"seed": 2**32}, "got 4294967296"),
        ({"seed": 1.5}, "^seed must be an integer, got 1.5"),
        ({"checkpoint_every": 0}, "^checkpoint_every must be at least 1, got 0"),
        ({"skip_nonfinite": -1}, "^skip_nonfinite must be at least 0, got -1"),
        ({"precision": "64"}, "^precision must be one of auto, 32, bf16, 16, got '64'"),
        ({"deliver": None}, "^deliver must be one of last, ema, best, auto, got None"),
        ({"logger": "paper"}, "^logger must be one of tensorboard, wandb, mlflow or a list, got 'paper'"),
        ({"logger": ["wandb", "paper"]}, "^logger.1 must be one of tensorboard, wandb, mlflow, got 'paper'"),
        ({"optim": {"Lr": 1.0}}, "^optim.Lr is not known; did you mean lr?"),
        ({"optim": {"lr": -1}}, "^optim.lr must be above 0, got -1"),
        ({"optim": 0.1}, "^optim must be an? OptimConfig, got 0.1"),
        ({"data": {"imagesize": 64}}, "^data.imagesize is not known; did you mean image_size?"),
        ({"out": 3}, "^out must be a string, got 3"),
    ],
)
def test_invalid_run_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        RunConfig(**{"out": "x", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": []}, "stages: the list is empty"),
        ({"stages": [StageConfig(1, [])], "inherit": True}, "inherit: the first stage has no teacher"),
        ({"stages": [{"epochs": 1}, {"epochs": 0}]}, r"^stages\.1\.epochs must be at least 1, got 0"),
        ({"stages": [{"epochs": 1}, {"epochs": "x"}]}, r"^stages\.1\.epochs must be an integer, got 'x'"),
        ({"stages": [{"epoch": 1}]}, r"^stages\.0\.epoch is not known; did you mean epochs\?"),
        ({"stages": [{}]}, r"^stages\.0: .*epochs"),
        ({"student": "fcoss"}, "unknown arch 'fcoss'"),
        ({"student": {"backbon": "resnet18"}}, r"^student\.backbon is not known; did you mean backbone\?"),
        ({"balance": "no"}, "^balance must be a number or null, got 'no'"),
        ({"inherit": 1}, "^inherit must be true or false or a string, got 1"),
        ({"loss": 7}, "^loss must be a string or a mapping or a list, got 7"),
        ({"loss": {"name": "dfmst"}}, "loss.name: unknown loss 'dfmst'; the losses are .*dfmsd"),
        ({"loss": {"alfa": 1.0}}, "loss.alfa: dfmsd has no such option; did you mean alpha"),
        ({"stages": [STAGES[0], StageConfig(3, "b", {"taw": 1.0})]}, r"stages\.1: loss.taw: .*did you mean tau"),
        ({"loss": [{"name": "pkd"}, {"name": "pkd"}], "stages": PLAIN}, "^loss: pkd is listed twice"),
        ({"loss": [], "stages": PLAIN}, "^loss: the list is empty"),
        ({"loss": [{"name": "pkd"}]}, r"^stages\.0: loss.name: missing; the loss of a stage replaces a list of losses"),
        ({"stages": [StageConfig(1, "a", [])]}, r"^stages\.0: loss: the list is empty"),
        (
            {"stages": [StageConfig(1, "a", [{"name": "dmkd"}, {}])]},
            r"^stages\.0: loss: dmkd and dfmsd both have a term",
        ),
        ({"balance": 0.0}, "balance must be above 0, or null to keep the given weights, got 0.0"),
        ({"data": {"multi_scale": (0.75, 1.25)}, "teacher_cache": "ram"}, "^teacher_cache: data.multi_scale resizes"),
        (
            {"data": {"multi_scale": (0.75, 1.25), "augment_pool": 4}, "teacher_cache": "ram"},
            "^teacher_cache: data.multi_scale resizes",
        ),
        ({"data": UNLABELED, "stages": [StageConfig(2)]}, "^data.unlabeled: .* need a teacher"),
        (
            {"data": replace(UNLABELED, pseudo=PseudoConfig("auto")), "stages": [StageConfig(2)]},
            "^data.pseudo.teacher: the first stage has no teacher; name the detector that labels",
        ),
        ({"data": UNLABELED, "loss": [{"name": "pkd"}, {"name": "crosskd"}], "stages": PLAIN}, "crosskd compares"),
        ({"data": UNLABELED, "loss": "detrdistill", "stages": PLAIN}, "^data.unlabeled: detrdistill compares predict"),
        (
            {"loss": "detrdistill", "stages": PLAIN, "teacher_cache": "ram"},
            "^teacher_cache: detrdistill runs the whole teacher in eve",
        ),
    ],
)
def test_an_impossible_distillation_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        DistillConfig(**{"out": "x", "stages": STAGES, **values})


def test_training_without_epochs_is_refused() -> None:
    with pytest.raises(DfmsdError, match=r"^epochs must be at least 1, got 0"):
        TrainConfig(out="x", epochs=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda **values: TrainConfig(epochs=3, **values),
        lambda **values: DistillConfig(stages=[StageConfig(2), StageConfig(1)], **values),
    ],
)
def test_the_best_epoch_is_one_of_those_evaluated(build: Any) -> None:
    build(out="x", deliver="best", eval_every=3)
    with pytest.raises(DfmsdError, match=r"^deliver: best .* with eval_every 4 only the last of 3 is evaluated; lower"):
        build(out="x", deliver="best", eval_every=4)


def test_an_effective_batch_is_checked_with_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = RunConfig(out="x", optim=OptimConfig(effective_batch=128))
    assert (config.world_size, config.per_step) == (4, 2)
    config = RunConfig(out="x", optim=OptimConfig(effective_batch=32))  # may be of a teacher that is trained already
    with pytest.raises(DfmsdError, match=r"^optim.effective_batch must be a multiple of 64, .* in 4 process.*, got 32"):
        config.check_effective_batch(config.world_size)


def test_a_loss_without_a_name_is_dfmsd() -> None:
    assert DistillConfig(out="x", stages=STAGES, loss={"alpha": 2.0}).loss == {"name": "dfmsd", "alpha": 2.0}


def test_python_values_are_converted_to_those_of_a_file(tmp_path: Path) -> None:
    config = DistillConfig(
        out=tmp_path / "run",  # type: ignore[arg-type]
        data={"root": tmp_path, "batch_size": np.int64(4)},  # type: ignore[arg-type]
        optim={"lr": np.float32(0.5), "warmup": np.int64(3)},  # type: ignore[arg-type]
        student="retinanet/resnet18",  # type: ignore[arg-type]
        stages=({"epochs": np.int64(2), "teacher": tmp_path / "teacher", "loss": "pkd"},),  # type: ignore[arg-type]
        loss="mgd",
        seed=np.int64(7),  # type: ignore[arg-type]
        precision=32,  # type: ignore[arg-type]
        balance=1,
        logger=("wandb", "mlflow"),  # type: ignore[arg-type]
    )
    assert config == DistillConfig(
        out=str(tmp_path / "run"),
        data=DataConfig(root=str(tmp_path), batch_size=4),
        optim=OptimConfig(lr=0.5, warmup=3),
        student=DetectorConfig("retinanet", "resnet18"),
        stages=[StageConfig(2, str(tmp_path / "teacher"), {"name": "pkd"})],
        loss={"name": "mgd"},
        seed=7,
        precision="32",
        balance=1.0,
        logger=["wandb", "mlflow"],
    )
    write_config(config, tmp_path)
    assert same_run(config, tmp_path)
    assert read_config(DistillConfig, tmp_path / "config.yaml").seed == 7


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gfl", DetectorConfig("gfl")),
        ("fcos/resnet18", DetectorConfig("fcos", "resnet18")),
        ("hf:some/model", DetectorConfig("hf:some/model")),
        ("fasterrcnn_resnet50_fpn", DetectorConfig("fasterrcnn_resnet50_fpn")),
    ],
)
def test_a_detector_may_be_given_by_name(name: str, config: DetectorConfig) -> None:
    assert TrainConfig(out="x", model=name).model == config  # type: ignore[arg-type]


def test_a_loss_may_be_given_by_name_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("out: x\nloss: pkd\nstages: [{epochs: 1, teacher: a, loss: mgd}, {epochs: 1, teacher: b}]\n")
    config = read_config(DistillConfig, file)
    assert (config.loss, config.stages[0].loss) == ({"name": "pkd"}, {"name": "mgd"})


def test_the_baseline_of_rotated_stages_has_nothing_to_rotate() -> None:
    stages = [StageConfig(1, "a", basis="student"), StageConfig(2, "b", basis="former")]
    baseline = DistillConfig(out="x", stages=stages).without_teachers()
    assert baseline.stages == [StageConfig(1), StageConfig(2)]


def test_the_baseline_keeps_everything_but_the_teachers() -> None:
    optim = OptimConfig(schedule="restart")
    config = DistillConfig(out="x", data=UNLABELED, stages=STAGES, balance=0.5, seed=3, optim=optim)
    baseline = config.without_teachers()
    assert baseline.data.unlabeled is None
    assert [(stage.teacher, stage.epochs, stage.loss) for stage in baseline.stages] == [(None, 2, {}), (None, 3, {})]
    assert baseline.balance is None
    assert baseline.epochs == config.epochs == 5
    assert replace(baseline, data=UNLABELED, stages=config.stages, balance=0.5) == config


@pytest.mark.parametrize(
    ("student", "schedule"),
    [
        (DetectorConfig(), "constant"),
        (DetectorConfig(pretrained=True), "cosine"),
        (DetectorConfig(init="runs/trained"), "cosine"),
    ],
)
def test_the_balance_of_a_student_from_trained_weights_falls(student: DetectorConfig, schedule: str) -> None:
    config = DistillConfig(out="x", stages=STAGES, student=student)
    assert config.balance_schedule == schedule
    stated: Any = {"constant": "cosine", "cosine": "constant"}[schedule]
    assert replace(config, balance_schedule=stated).balance_schedule == stated
    assert config.without_teachers().balance_schedule == "constant"


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


def test_a_run_with_a_removed_option_is_a_different_run(tmp_path: Path) -> None:
    config = DistillConfig(out="x", stages=STAGES)
    (tmp_path / "config.yaml").write_text(to_yaml(config).replace("  channel_ratio:", "  channel_share:"))
    assert not same_run(config, tmp_path)


def test_the_location_of_a_run_does_not_matter(tmp_path: Path) -> None:
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


def test_a_run_from_before_a_key_of_pseudo_labels_existed_is_the_same(tmp_path: Path) -> None:
    data = replace(UNLABELED, pseudo=PseudoConfig(0.5, "a"))
    config = DistillConfig(out=str(tmp_path), data=data, stages=[StageConfig(2, "a")])
    saved = yaml.safe_load(to_yaml(config))
    del saved["data"]["pseudo"]["keep"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert same_run(config, tmp_path)
    soft = replace(data, pseudo=replace(data.pseudo, keep="soft"))
    assert not same_run(replace(config, data=soft), tmp_path)


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
    assert not same_run(replace(config, data=DataConfig(image_size=512)), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": DataConfig(scale_jitter=(0.5, 2.0))}, "teacher_cache: data.scale_jitter changes the pixels in every"),
        (
            {"data": DataConfig(augment="strong", scale_jitter=(1, 1))},
            "teacher_cache: data.photometric changes the pix",
        ),
        ({"data": DataConfig(pad="batch")}, "teacher_cache: with data.pad `batch` the frame, and so the features"),
        ({"teacher_cache": "tape"}, "teacher_cache must be one of ram, disk or null, got 'tape'"),
        ({"teacher_cache_dtype": "float64"}, "teacher_cache_dtype must be one of float16, int8, got 'float64'"),
        ({"teacher_cache_gib": 0.0}, "teacher_cache_gib must be above 0, got 0.0"),
        ({"teacher_cache_gib": float("nan")}, "teacher_cache_gib must be above 0, got nan"),
    ],
)
def test_an_impossible_teacher_cache_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        DistillConfig(out="x", stages=STAGES, **{"teacher_cache": "ram", **values})


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_a_cache_works_with_flips_and_a_baseline_has_none(flip: float) -> None:
    config = DistillConfig(out="x", stages=STAGES, data=DataConfig(flip=flip), teacher_cache="disk")
    assert config.without_teachers().teacher_cache is None
    DistillConfig(out="x", stages=STAGES, data=DataConfig(flip=flip, scale_jitter=(0.5, 2.0), pad="batch"))


def test_a_cache_works_with_a_pool_of_augmented_versions() -> None:
    data = DataConfig(augment="strong", augment_pool=8)
    config = DistillConfig(out="x", stages=STAGES, data=data, teacher_cache="ram")
    assert config.data.uncacheable is None


@pytest.mark.parametrize(
    ("written", "cache"), [("on", "ram"), ("off", "off"), ("true", "ram"), ("ram", "ram"), ("disk", "disk")]
)
def test_the_image_cache_is_a_word_or_a_boolean(tmp_path: Path, written: str, cache: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"out: x\ndata: {{cache: {written}}}\nteacher_cache: null\nstages: [{{epochs: 1}}]\n")
    config = read_config(DistillConfig, file)
    assert config.data.cache == cache
    write_config(config, tmp_path)
    assert read_config(DistillConfig, file) == config


def test_yaml_keeps_the_order_of_the_fields() -> None:
    assert to_yaml(TrainConfig(out="x")).startswith("out: x\ndata:\n  root: digits\n")


def test_auto_is_bf16_on_a_gpu_that_has_it_and_float32_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DistillConfig(out="x", stages=STAGES)
    assert config.precision == "auto"
    for has_bf16, chosen, dtype in ((True, "bf16", torch.bfloat16), (False, "32", torch.float32)):
        monkeypatch.setattr("dfmsd.engine.runconfig.supports_bf16", lambda answer=has_bf16: answer)
        assert config.chosen_precision == chosen
        assert config.teacher_dtype == dtype
        assert replace(config, precision="16").chosen_precision == "16"


@pytest.mark.parametrize("kind", [DistillConfig, TrainConfig])
def test_a_run_keeps_the_precision_that_it_has_chosen(
    tmp_path: Path, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it goes on, on a machine that would choose another one."""
    monkeypatch.setattr("dfmsd.engine.runconfig.supports_bf16", lambda: False)
    config = kind(out="x", **({"stages": STAGES} if kind is DistillConfig else {}))
    write_config(replace(config, precision="bf16"), tmp_path)
    assert as_started(config, tmp_path).chosen_precision == "bf16"
    assert same_run(config, tmp_path)
    assert differing_keys(replace(config, precision="32"), tmp_path) == ["precision"]
