from __future__ import annotations

import functools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.helpers.bad_input import unfinished_run
from tests.helpers.command import Command

import dfmsd as package
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.estimation import estimator
from dfmsd.starting import models, starter


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for no longer than needed, and have no weights in packages."""
    monkeypatch.setattr(starter, "estimate", functools.partial(estimator.estimate, seconds=0))
    monkeypatch.setattr(models, "pip_weights", lambda _: None)


def test_the_config_passes_the_check(dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str]) -> None:
    status, out, _ = dfmsd("init", tiny_root, "--teacher", tiny_teachers[0], "--out", "my.yaml")
    assert (status, out) == (0, "my.yaml\n")
    config = read_config(DistillConfig, Path("my.yaml"))
    assert config.data.root == str(tiny_root)
    assert (config.data.image_size, config.data.batch_size) == (96, 8)  # the images' own size, all images
    assert (config.student.arch, config.student.fpn_channels, config.student.head_convs) == ("fcos", 32, 1)
    assert (config.epochs, config.eval_every, config.out) == (300, 30, "runs/my")
    assert (config.data.augment, config.teacher_cache) == ("strong", None)
    text = Path("my.yaml").read_text()
    assert "8 images to train on and 4 to evaluate on" in text
    assert all("#" in line for line in text.splitlines() if "image_size" in line or "epochs" in line)
    assert dfmsd("check", "--config", "my.yaml", "--allow-weak-teacher")[0] == 0


def test_without_a_teacher_one_is_trained_first(dfmsd: Command, tiny_root: Path) -> None:
    assert dfmsd("init", tiny_root, "--out", "my.yaml")[:2] == (0, "my.yaml\nmy-teacher.yaml\n")
    config = read_config(DistillConfig, Path("my.yaml"))
    training = read_config(TrainConfig, Path("my-teacher.yaml"))
    assert config.stages[0].teachers == ("my-teacher.yaml",)
    assert (training.out, training.model.arch, training.model.pretrained) == ("runs/my-teacher", "fcos", True)
    assert training.model.backbone == "tf_efficientnet_lite2"
    assert training.data.augment == config.data.augment == "strong"
    Path("my.yaml").unlink()
    assert "my-teacher.yaml exists" in dfmsd.refusal("init", tiny_root, "--out", "my.yaml")
    assert dfmsd("init", tiny_root, "--out", "my.yaml", "--overwrite")[0] == 0


def test_the_folder_of_the_file_is_created(dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str]) -> None:
    assert dfmsd("init", tiny_root, "--teacher", tiny_teachers[0], "--out", "new/my.yaml")[0] == 0
    assert Path("new/my.yaml").is_file()


def test_the_hours_limit_the_epochs(
    dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "epochs_within", lambda hours, found: found.config.epochs // 3)
    line = ["init", tiny_root, "--teacher", tiny_teachers[0], "--out", "my.yaml"]
    assert dfmsd(*line, "--hours", "2")[0] == 0
    config = read_config(DistillConfig, Path("my.yaml"))
    assert (config.epochs, config.eval_every) == (100, 10)
    text = Path("my.yaml").read_text()
    assert "2 hours allow it" in text
    assert "teacher's training" not in text  # it exists
    assert "fewer than 1,000 are few" in text


def test_epochs_can_be_named(dfmsd: Command, tiny_root: Path) -> None:
    assert dfmsd("init", tiny_root, "--out", "my.yaml", "--epochs", "7")[0] == 0
    config = read_config(DistillConfig, Path("my.yaml"))
    training = read_config(TrainConfig, Path("my-teacher.yaml"))
    assert (config.epochs, config.data.augment, training.epochs) == (7, "light", 7)
    assert training.data.scale_jitter == (0.75, 1.35)
    assert "as given" in Path("my.yaml").read_text()


def test_epochs_are_written_as_a_plain_number(tiny_root: Path, tmp_path: Path) -> None:
    file, _ = package.init(tiny_root, tmp_path / "my.yaml", epochs=np.int64(7))  # type: ignore[arg-type]
    assert read_config(DistillConfig, file).epochs == 7


def test_what_the_data_are_is_said_once(
    dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest, in whose place the command puts its own
    status, _, err = dfmsd("init", tiny_root, "--teacher", tiny_teachers[0], "--out", "my.yaml", "--hours", "99")
    assert status == 0
    assert " ".join(err.split()).count("data: COCO layout in") == 1


def test_a_data_set_without_val_is_divided(dfmsd: Command, tiny_coco: Path, tiny_teachers: tuple[str, str]) -> None:
    shutil.rmtree(tiny_coco / "val")
    (tiny_coco / "annotations" / "instances_val.json").unlink()
    assert dfmsd("init", tiny_coco, "--teacher", tiny_teachers[0], "--out", "my.yaml")[0] == 0
    assert read_config(DistillConfig, Path("my.yaml")).data.holdout == 0.2


def test_a_run_folder_that_exists_is_not_named(dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str]) -> None:
    shutil.copytree(tiny_teachers[0], "runs/my")
    assert dfmsd("init", tiny_root, "--teacher", "runs/my", "--out", "my.yaml")[0] == 0
    assert read_config(DistillConfig, Path("my.yaml")).out == "runs/my-2"


def test_python_writes_the_same_file(
    dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    student = "retinanet/mobilenetv3_small_050"
    assert dfmsd("init", tiny_root, "--teacher", tiny_teachers[0], "--student", student, "--out", "my.yaml")[0] == 0
    text = Path("my.yaml").read_text()
    written = package.init(tiny_root, tmp_path / "my.yaml", teacher=tiny_teachers[0], student=student, overwrite=True)
    assert written == [tmp_path / "my.yaml"]
    assert yaml.safe_load(text) == yaml.safe_load(written[0].read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--out", "new.yaml"], "data.root: no folder"),
        (["DATA", "--out", "old.yaml"], "old.yaml exists; pass --overwrite to replace it"),
        (["DATA", "--out", "new.txt"], "new.txt is not the name of a YAML file; end it with .yaml"),
        (["DATA", "--out", "old.yaml/new.yaml"], "cannot write to old.yaml"),
        (["DATA", "--out", "folder.yaml"], "folder.yaml is a folder"),
        (["DATA", "--out", "new.yaml", "--teacher", "runs/none"], "no detector at 'runs/none'"),
        (["DATA", "--out", "new.yaml", "--teacher", "none.yaml"], "none.yaml"),
        (["DATA", "--out", "new.yaml", "--teacher", ""], "teacher: ''"),
        (["DATA", "--out", "new.yaml", "--teacher", "run"], "the run has not finished"),
        (["DATA", "--out", "new.yaml", "--teacher", "OTHER"], "knows none of the data's classes square, disc"),
        (["DATA", "--out", "new.yaml", "--student", "fcoss"], "student: no detector at 'fcoss'"),
        (["DATA", "--out", "new.yaml", "--student", "fcos/resnet19"], "unknown backbone 'resnet19'"),
        (["DATA", "--out", "new.yaml", "--hours", "0"], "hours must be above 0, got 0"),
        (["DATA", "--out", "new.yaml", "--hours", "nan"], "hours"),
        (["DATA", "--out", "new.yaml", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["DATA", "--out", "new.yaml", "--epochs", "1.5"], "epochs"),
        (["DATA", "--out", "new.yaml", "--teacher", "TEACHER", "--hours", "1e-9"], "hours: a single epoch takes"),
    ],
)
def test_bad_input_is_refused(
    dfmsd: Command, tiny_root: Path, tiny_teachers: tuple[str, str], arguments: list[str], said: str
) -> None:
    (dfmsd.folder / "old.yaml").write_text("out: x\n")
    (dfmsd.folder / "folder.yaml").mkdir()
    unfinished_run(dfmsd.folder)
    shutil.copytree(tiny_teachers[0], dfmsd.folder / "other")
    description = dfmsd.folder / "other" / "student.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "class_names": ["cat", "dog"]}))
    values = {"DATA": str(tiny_root), "TEACHER": tiny_teachers[0], "OTHER": "other"}
    assert said in dfmsd.refusal("init", *(values.get(word, word) for word in arguments))


def test_a_detector_has_no_place_in_a_file(tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path) -> None:
    detector = package.load_detector(tiny_teachers[0])
    with pytest.raises(package.DfmsdError, match=r"^student: a file cannot hold a Detector"):
        package.init(tiny_root, tmp_path / "my.yaml", student=detector)
