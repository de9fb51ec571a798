from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers.yaml_configs import DISTILL, SUM

from dfmsd.comparison.config import CompareConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import parse_config, read_config
from dfmsd.engine.saved_config import same_run, write_config
from dfmsd.errors import DfmsdError
from dfmsd.reporting.records import read_run
from dfmsd.reporting.runconfig import run_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "distill.yaml"
    path.write_text(DISTILL)
    return path


def test_yaml_becomes_the_config_object(file: Path) -> None:
    config = read_config(DistillConfig, file)
    assert (config.data.root, config.data.image_size, config.data.batch_size) == ("somewhere", 96, 16)
    assert (config.student.backbone, config.student.arch) == ("resnet18", "fcos")
    assert [(stage.teacher, stage.epochs, stage.loss) for stage in config.stages] == [
        ("a", 1, {}),
        ("b", 2, {"beta": 3.0}),
    ]
    assert config.loss == {"name": "dfmsd", "alpha": 0.5}


def test_a_list_of_losses_is_written_and_read_again(file: Path, tmp_path: Path) -> None:
    file.write_text(SUM)
    config = read_config(DistillConfig, file)
    write_config(config, tmp_path)
    again = read_config(DistillConfig, tmp_path / "config.yaml")
    assert [part["name"] for part in again.loss] == ["pkd", "mgd"]
    assert again.loss[1] == {
        "name": "mgd",
        "ratio": 0.5,
        "pairing": "auto",
        "weight": 1e-5,
        "project": False,
        "resize": "student",
    }
    assert same_run(again, tmp_path)
    assert same_run(config, tmp_path)
    assert not same_run(replace(config, loss=[{"name": "pkd"}, {"name": "mgd"}]), tmp_path)
    assert not same_run(replace(config, loss={"name": "pkd"}), tmp_path)


@pytest.mark.parametrize("pairing", ["auto", {"p3": "p2", "p4": "p3"}])
def test_a_pairing_is_written_and_read_again(file: Path, tmp_path: Path, pairing: str | dict[str, str]) -> None:
    file.write_text(DISTILL.replace("alpha: 0.5", f"pairing: {json.dumps(pairing)}"))
    config = read_config(DistillConfig, file)
    assert config.loss == {"name": "dfmsd", "pairing": pairing}
    write_config(config, tmp_path)
    again = read_config(DistillConfig, tmp_path / "config.yaml")
    assert isinstance(again.loss, dict)
    assert again.loss["pairing"] == pairing
    assert same_run(again, tmp_path)
    assert not same_run(replace(config, loss={"name": "dfmsd", "pairing": {"p3": "p3", "p4": "p4"}}), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha: 0.5", "pairing: {p3: p2, p4: p2}", r"loss\.pairing: teacher level p2 occurs twice"),
        ("alpha: 0.5", "pairing: {3: 2}", r"loss\.pairing: 3 is not the name of a level"),
        ("alpha: 0.5", "pairing: [p3, p4]", r"loss\.pairing must be one of auto, stride, index or a mapping"),
        ("root:", "rot:", r"unknown key data\.rot; did you mean data\.root\?"),
        ("backbone:", "backbon:", r"unknown key student\.backbon; did you mean student\.backbone\?"),
        ("stages:", "stags:", r"unknown key stags; did you mean stages\?"),
        ("teacher: a, epochs: 1", "teacher: a, epoch: 1", r"stages: unknown key epoch; did you mean epochs\?"),
        ("out:", "zzz: 1\nout:", r"unknown key zzz$"),
        ("out:", "epochs: 1\nout:", r"unknown key epochs; it belongs to an entry of stages"),
        ("out:", "lr: 1\nout:", r"unknown key lr; did you mean optim\.lr\?"),
        ("root: ", "root:/", r"unknown key data\.root:/somewhere; a blank is missing after the colon"),
        ("out:", "device: cpu\nout:", r"unknown key device; .* GPU is used if there is one; CUDA_VISIBLE_DEVICES"),
        ("image_size: 96", "image_size: wide", r"data\.image_size"),
        ("out:", "teacher_cache: disc\nout:", r"teacher_cache: expected one of 'ram', 'disk', null, got disc$"),
        ("out:", "optim: {lr: fast}\nout:", r"optim\.lr: expected one of float, 'auto', got fast$"),
        ("image_size: 96", "cache: foo", r"data\.cache: expected one of bool, 'ram', 'disk', 'off', got foo$"),
        ("image_size: 96", "scale_jitter: 1", r"data\.scale_jitter: expected tuple\[float, float\], got 1$"),
        ("image_size: 96", "pseudo: {score: x}", r"pseudo\.score: expected one of float, 'auto', null, got x$"),
        ("out:", "teacher_classes: foo\nout:", r"teacher_classes: expected dict\[str, str\], got foo$"),
        ("out:", "logger: foo\nout:", r"expected one of 'tensorboard', .*, list\['tensorboard', .*\], got foo$"),
        ("{teacher: a, epochs: 1}", "runs/a", r"stages: .* keys such as {teacher: runs/a, epochs: 12}, got runs/a$"),
        ("image_size: 96", "pad: diagonal", r"data\.pad.*'square'"),
        ("{name: dfmsd, alpha: 0.5}", "dfmst", "loss.name: unknown loss 'dfmst'"),
        ("out: runs/x\n", "", "out"),
        ("root: somewhere", "root: {somewhere", "not valid YAML .*line"),
    ],
)
def test_bad_files_are_refused_in_one_line_that_names_the_file(file: Path, old: str, new: str, message: str) -> None:
    assert old in DISTILL
    file.write_text(DISTILL.replace(old, new))
    with pytest.raises(DfmsdError, match=message) as error:
        read_config(DistillConfig, file)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"none\.yaml.*does not exist"):
        read_config(TrainConfig, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "kind", "command", "key"),
    [
        (DISTILL, TrainConfig, "distill", "stages"),
        (DISTILL, CompareConfig, "distill", "stages"),
        ("out: x\nmodel: {arch: fcos}\n", DistillConfig, "train", "model"),
        ("out: x\nmodel: {arch: fcos}\n", CompareConfig, "train", "model"),
        ("out: x\nstudent: {arch: fcos}\npairs: {a: [b]}\n", DistillConfig, "compare", "pairs"),
        ("out: x\nstudent: {arch: fcos}\npairs: {a: [b]}\n", TrainConfig, "compare", "pairs"),
        (DISTILL + "tune: {space: {}}\n", DistillConfig, "tune", "tune"),
    ],
)
def test_a_config_of_another_command_is_refused(file: Path, text: str, kind: type[Any], command: str, key: str) -> None:
    file.write_text(text)
    message = rf"distill\.yaml is a config of `dfmsd {command}`, as its key {key} tells; pass "
    with pytest.raises(DfmsdError, match=message):
        read_config(kind, file)


def test_a_typo_does_not_make_a_config_of_another_command(file: Path) -> None:
    file.write_text(DISTILL.replace("student:", "model:"))
    with pytest.raises(DfmsdError, match=r"unknown key model\.backbone; did you mean student\.backbone\?"):
        read_config(DistillConfig, file)


@pytest.mark.parametrize("kind", [DistillConfig, CompareConfig])
def test_a_removed_key_may_still_state_the_value_that_is_left(tmp_path: Path, kind: type[Any]) -> None:
    file = tmp_path / "old.yaml"
    text = DISTILL if kind is DistillConfig else "out: x\npairs: {p: [a.yaml]}\nmethods: [none, pkd]\n"
    file.write_text(text)
    present = read_config(kind, file)
    file.write_text(f"{text}balance_by: loss\n")
    assert read_config(kind, file) == present
    file.write_text(f"{text}balance_by: term\n")
    message = r"old\.yaml: balance_by: 'term' was removed; leave balance_by out, which means 'loss'$"
    with pytest.raises(DfmsdError, match=message):
        read_config(kind, file)


def test_compile_loss_has_become_a_part_of_compile(file: Path) -> None:
    plain = file.read_text()
    file.write_text(f"{plain}compile_loss: true\n")
    with pytest.raises(DfmsdError, match="compile_loss: True was removed; write compile: true instead"):
        read_config(DistillConfig, file)
    file.write_text(f"{plain}compile_loss: false\ncompile: true\n")
    assert read_config(DistillConfig, file).compile


def test_a_run_folder_of_an_earlier_version_is_the_same_run(file: Path, tmp_path: Path) -> None:
    config = read_config(DistillConfig, file)
    write_config(config, tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    former = {"focus": 0.0, "selection": "topk", "target": "standardized", "gamma": 1.0, "enhancement": "error+object"}
    for balance_by, change, same in (("loss", {}, True), ("term", {}, False), ("loss", {"focus": 0.5}, False)):
        loss = {**saved["loss"], **former, **change}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**saved, "loss": loss, "balance_by": balance_by}))
        assert same_run(config, tmp_path) is same
        assert (run_config(read_run(tmp_path)) is not None) is same


def test_a_value_in_place_of_a_section_within_a_section_is_refused() -> None:
    with pytest.raises(DfmsdError, match=r"^data.pseudo: expected keys of PseudoConfig, got bool$"):
        parse_config(TrainConfig, {"out": "run", "data": {"pseudo": True}})
