from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from tests.helpers.fixtures import TINY_BACKBONE

import dfmsd
from dfmsd.api import settings
from dfmsd.engine.configfile import read_config
from dfmsd.engine.runconfig import RunConfig
from dfmsd.errors import DfmsdError

CLASSES = ("square", "disc")


def tiny(**values: Any) -> dfmsd.DetectorConfig:
    return dfmsd.DetectorConfig(**{"backbone": TINY_BACKBONE, "fpn_channels": 16, "head_convs": 1, **values})


class Calls(list[tuple[dfmsd.DistillConfig, dict[str, Any]]]):
    """Config and options of each call of the engine, which trains nothing."""

    def __call__(self, config: dfmsd.DistillConfig, **options: Any) -> Any:
        self.append((config, options))
        return SimpleNamespace(run=Path(config.out))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr("dfmsd.engine.run.distill", calls)
    monkeypatch.setattr("dfmsd.reporting.run_report", lambda run: run / "report.html")
    return calls


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """YAML file of a distillation."""
    content = {
        "out": "run",
        "data": {"root": "data", "image_size": 64},
        "student": {"backbone": TINY_BACKBONE},
        "stages": [{"teacher": "a", "epochs": 2}],
        "seed": 3,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_distill_trains_a_detector_in_place_and_writes_the_run(
    tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    config = tiny(arch="retinanet")
    student = dfmsd.build_detector(config, CLASSES)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teachers = [dfmsd.load_detector(tiny_teachers[0]), Path(tiny_teachers[1])]
    data = dfmsd.DataConfig(str(tiny_root), image_size=64, batch_size=4)
    result = dfmsd.distill(student, teachers, data, tmp_path / "run", epochs=2, allow_weak_teacher=True)

    assert isinstance(result.metrics["AP"], float)
    assert result.student is student
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    written = read_config(dfmsd.DistillConfig, result.run / "config.yaml")
    assert written.student == config
    assert [(stage.teacher, stage.epochs) for stage in written.stages] == [
        ("python:teacher1", 1),
        (tiny_teachers[1], 1),
    ]
    assert json.loads((result.run / "student.json").read_text())["detector"]["arch"] == "retinanet"
    assert "<html" in (result.run / "report.html").read_text()
    loaded = dfmsd.load_detector(result.run).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in student.model.state_dict().items())
    with pytest.raises(DfmsdError, match="already holds a run"):
        dfmsd.distill(student, teachers, data, tmp_path / "run", epochs=2)
    (result.run / "report.html").unlink()
    again = dfmsd.distill(student, teachers, data, tmp_path / "run", epochs=2, resume=True, report=False)
    assert again.metrics == result.metrics
    assert not (result.run / "report.html").exists()


@pytest.mark.parametrize(("epochs", "lengths"), [(5, [3, 2]), (2, [1, 1]), ([4, 1], [4, 1])])
def test_epochs_are_shared_or_given_for_each_stage(calls: Calls, epochs: Any, lengths: list[int]) -> None:
    dfmsd.distill(tiny(), ["a", "b"], "data", "out", epochs=epochs, seed=3, loss={"name": "dfmsd", "beta": 2.0})
    [(config, _)] = calls
    assert [stage.epochs for stage in config.stages] == lengths
    assert isinstance(config.loss, dict)
    assert (config.seed, config.loss["beta"], config.data.root, config.out) == (3, 2.0, "data", "out")


@pytest.mark.parametrize("teachers", ["a", Path("a"), ["a"]])
def test_one_teacher_needs_no_list(calls: Calls, teachers: Any) -> None:
    dfmsd.distill(student=tiny(), teachers=teachers, data="data", out=Path("out"))
    assert [(stage.teacher, stage.epochs) for stage in calls[0][0].stages] == [("a", 12)]


def test_a_nested_list_of_teachers_is_one_stage(calls: Calls) -> None:
    teachers = [dfmsd.build_detector(tiny(), CLASSES) for _ in range(2)]
    dfmsd.distill(tiny(), ["a", [teachers[0], Path("b")], teachers[1]], "data", "out", epochs=6)
    [(config, options)] = calls
    stages = [("a", 2), (["python:teacher2", "b"], 2), ("python:teacher4", 2)]
    assert [(stage.teacher, stage.epochs) for stage in config.stages] == stages
    assert options["teachers"] == {"python:teacher2": teachers[0], "python:teacher4": teachers[1]}


@pytest.mark.parametrize(
    ("student", "config"),
    [
        ("retinanet", dfmsd.DetectorConfig("retinanet")),
        ("fcos/resnet18", dfmsd.DetectorConfig("fcos", "resnet18")),
        ("gfl/torchvision/resnet18", dfmsd.DetectorConfig("gfl", "torchvision/resnet18")),
        ("ssd300_vgg16", dfmsd.DetectorConfig("ssd300_vgg16")),
        ("hf:owner/name", dfmsd.DetectorConfig("hf:owner/name", pretrained=True)),
        (dfmsd.TrainConfig(out="t", model=tiny()), tiny()),
    ],
)
def test_a_student_may_be_a_name_or_a_config(calls: Calls, student: Any, config: dfmsd.DetectorConfig) -> None:
    dfmsd.distill(student, "a", "data", "out")
    dfmsd.train(student if isinstance(student, str) else student.model, "data", "out", epochs=3)
    [(distilled, options), (trained, _)] = calls
    assert distilled.student == trained.student == config
    assert options["student"] is None
    assert trained.epochs == 3


def test_a_student_may_be_a_run_folder_whose_weights_it_starts_with(
    calls: Calls, tiny_teachers: tuple[str, str]
) -> None:
    dfmsd.distill(tiny_teachers[0], "a", "data", "out")
    [(config, options)] = calls
    loaded = dfmsd.load_detector(tiny_teachers[0])
    assert loaded.config is not None
    assert config.student == replace(loaded.config, init=tiny_teachers[0])
    assert options["student"] is None
    with pytest.raises(
        DfmsdError, match=r"student: no detector at 'runs/none': .* is one of fcos.* as in fcos/resnet18"
    ):
        dfmsd.distill("runs/none", "a", "data", "out")


def test_configs_as_teachers_are_named_by_their_run_folders(calls: Calls) -> None:
    trained = dfmsd.TrainConfig(out="trained", model=tiny())
    distilled = dfmsd.DistillConfig(out="distilled", student=tiny(), stages=[dfmsd.StageConfig(1, "other")])
    dfmsd.distill(tiny(), [trained, [distilled, "third"]], "data", "out")
    ((config, options),) = calls
    assert [stage.teachers for stage in config.stages] == [("trained",), ("distilled", "third")]
    assert options["recipes"] == {"trained": trained, "distilled": distilled}


def test_a_config_file_is_the_whole_run_and_settings_replace_its_values(calls: Calls, recipe: Path) -> None:
    dfmsd.distill(recipe)
    dfmsd.distill(str(recipe), out="other", seed=4, no_distill=True, data=dfmsd.DataConfig("elsewhere"))
    dfmsd.distill(read_config(dfmsd.DistillConfig, recipe), precision="bf16")
    configs = [config for config, _ in calls]
    assert configs[0] == read_config(dfmsd.DistillConfig, recipe)
    assert (configs[1].out, configs[1].seed, configs[1].data.root) == ("other", 4, "elsewhere")
    assert configs[1].stages == configs[0].stages
    assert calls[1][1]["no_distill"] is True
    assert (configs[2].precision, configs[2].seed) == ("bf16", 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dfmsd.distill(tiny(), ["a", "b"], "data", "out", epochs=[1, 2, 3]), "epochs: 3 numbers for 2 stages"),
        (
            lambda: dfmsd.distill(tiny(), ["a", "b"], "data", "out", epochs=1),
            "epochs must be at least 1, got 0",
        ),
        (lambda: dfmsd.distill(tiny(), [], "data", "out"), "stages: the list is empty"),
        (lambda: distill(tiny(), ["a", []], "data", "out"), "teachers: a stage's list is empty; name a teacher"),
        (lambda: distill(tiny(), "a", "data", "out", epochs=1.5), "epochs must be an integer or a list, got 1.5"),
        (lambda: distill(tiny(), "a", 4, "out"), "data: expected keys of DataConfig, got int"),
        (lambda: distill(tiny(), "a", "data", "out", optim=4), "optim: expected keys of OptimConfig, got int"),
        (lambda: distill(tiny(), "a", "data", "out", optim="sgd"), "optim: 'sgd' is not a YAML file with its keys, wh"),
        (
            lambda: distill(tiny(), "a", "data", "out", optim={"rate": 1}),
            "unknown key optim.rate; optim has name, lr",
        ),
        (lambda: distill(tiny(), "a", "data", "out", epoch=3), "no setting 'epoch'; did you mean epochs?"),
        (lambda: distill(tiny(), "a", "data", "out", balence=1.0), "no setting 'balence'; did you mean balance?"),
        (lambda: distill(tiny(), "a", "data", "out", zzz=1), "no setting 'zzz'; DistillConfig has balance, "),
        (lambda: distill(tiny(), "a", "data", "out", seed="x"), "seed: expected int, got x"),
        (lambda: distill(tiny(), "a", "data", "out", optim={"lrr": 1}), "did you mean optim.lr?"),
        (lambda: distill(tiny(), "a", "data", out=3), "out: expected str, got 3"),
        (lambda: distill(tiny(), "a", "data"), "out: missing; pass out=..."),
        (lambda: distill("fcos", data="data", out="out"), "teachers: missing; pass teachers=..., or a DistillConfig"),
        (lambda: distill(), "student: missing"),
        (lambda: distill(tiny(), "a", "data", "out", stages=[]), "stages: already described by teachers and epochs"),
        (lambda: distill(tiny(), "a", "data", "out", student="gfl"), "student: already described by the student as"),
        (lambda: distill(3, "a", "data", "out"), "student: expected a name such as fcos/mobilenetv3_small_050"),
        (lambda: distill("fcoss/resnet18", "a", "data", "out"), r"no detector at 'fcoss/resnet18'.*mean fcos\?"),
        (lambda: distill(tiny(), tiny(), "data", "out"), "teachers: expected run folders, .*got DetectorConfig"),
        (lambda: distill("nowhere.yaml"), r"nowhere\.yaml"),
        (lambda: train("fcos", "data", "out", epoch=3), "no setting 'epoch'; did you mean epochs?"),
        (lambda: train("fcos", "data"), "out: missing; pass out=..., or a TrainConfig"),
        (
            lambda: check(3),
            "teachers: missing; pass teachers=..., or a DistillConfig or the path of its YAML file alone",
        ),
        (lambda: check("fcos", "a"), "data: missing; pass data=..."),
        (lambda: check("fcos", "a", "data", epochs=3), "no setting 'epochs'"),
        (lambda: compare("c.yaml", job=2), "no setting 'job'; did you mean jobs?"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(calls: Calls, call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message.replace("?", r"\?")):
        call()
    assert not calls


NAMES = ("distill", "train", "check", "compare")
distill, train, check, compare = (getattr(dfmsd, name) for name in NAMES)
"""Untyped, for arguments that a type checker would refuse."""


def test_check_takes_what_distill_takes(tiny_root: Path, tiny_teachers: tuple[str, str]) -> None:
    data = dfmsd.DataConfig(str(tiny_root), image_size=64, batch_size=4)
    student, teacher = dfmsd.build_detector(tiny(), CLASSES), dfmsd.load_detector(tiny_teachers[0])
    before = {key: value.clone() for key, value in student.state_dict().items()}
    found = dfmsd.check(student, [teacher, tiny_teachers[1]], data, allow_weak_teacher=True, loss={"name": "pkd"})
    assert set(found.ap) == {"python:teacher1", tiny_teachers[1], "student"}
    assert {term.name for term in found.terms} == {"task", "pkd"}
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_epochs_are_not_a_setting_of_a_config_with_stages(calls: Calls, recipe: Path) -> None:
    with pytest.raises(DfmsdError, match="epochs: the config states those of each stage"):
        distill(recipe, epochs=3)


def test_teachers_are_not_passed_next_to_a_config(calls: Calls) -> None:
    config = dfmsd.DistillConfig("run", stages=[dfmsd.StageConfig(1)])
    with pytest.raises(DfmsdError, match="teachers: the config states those of each stage"):
        distill(config, "a")
    assert not calls


def test_numbers_of_numpy_are_numbers(calls: Calls) -> None:
    student = dfmsd.DetectorConfig(backbone=TINY_BACKBONE, fpn_channels=np.int64(16), anchor_scale=np.float32(2))  # type: ignore[arg-type]
    settings = {"epochs": np.int64(3), "seed": np.int64(4), "balance": np.float32(40), "optim": {"lr": np.float64(0.5)}}
    distill(student, "a", "data", "out", **settings)
    [(config, _)] = calls
    assert (config.student.fpn_channels, config.student.anchor_scale) == (16, 2.0)
    assert (config.stages[0].epochs, config.seed, config.balance, config.optim.lr) == (3, 4, 40.0, 0.5)


def test_a_student_that_could_not_be_saved_is_refused_before_any_work(tmp_path: Path) -> None:
    student = dfmsd.build_detector(tiny(), CLASSES)
    student.config = None  # as one that was wrapped by hand
    with pytest.raises(DfmsdError, match="student: this OneStageDetector was not built from a config"):
        dfmsd.distill(student, "a", tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("typed", "config", "without"),
    [
        (settings.RunSettings, RunConfig, {"out", "data"}),
        (settings.TrainChanges, dfmsd.TrainConfig, set()),
        (settings.DistillChanges, dfmsd.DistillConfig, set()),
    ],
)
def test_typed_settings_are_the_keys_of_the_configs(typed: Any, config: Any, without: set[str]) -> None:
    names = {field.name for field in fields(config)}
    expected = {name: kind for name, kind in get_type_hints(config).items() if name in names}
    found = get_type_hints(typed)
    assert found.keys() == expected.keys() - without
    assert all(found[name] == expected[name] or expected[name] in (*get_args(found[name]), str) for name in found)
