from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import apply_list_flags, build_config, config_parser, read_config
from dfmsd.engine.saved_config import same_run, write_config
from dfmsd.errors import DfmsdError

DISTILL = """\
data: {root: somewhere, image_size: 96}
student: {backbone: resnet18}
stages:
  - {teacher: a, epochs: 1}
  - {teacher: b, epochs: 2, loss: {beta: 3.0}}
loss: {name: dfmsd, alpha: 0.5}
out: runs/x
"""

SUM = """\
stages:
  - {teacher: a, epochs: 1}
  - {teacher: b, epochs: 2, loss: [{name: cwd}, {name: fgd, relation: 1e-5}]}
loss: [{name: pkd}, {name: mgd, ratio: 0.5, weight: 1e-5}]
out: runs/x
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "distill.yaml"
    path.write_text(DISTILL)
    return path


def parse(file: Path, *flags: str) -> DistillConfig:
    parser = config_parser(DistillConfig)
    arguments = ["--config", str(file), *flags]
    for key in ("stages", "loss"):
        arguments = apply_list_flags(lambda: parser, arguments, key)
    return build_config(DistillConfig, parser.instantiate(parser.parse_args(arguments)))


def test_yaml_becomes_the_config_object(file: Path) -> None:
    config = read_config(DistillConfig, file)
    assert (config.data.root, config.data.image_size, config.data.batch_size) == ("somewhere", 96, 16)
    assert (config.student.backbone, config.student.arch) == ("resnet18", "fcos")
    assert [(stage.teacher, stage.epochs, stage.loss) for stage in config.stages] == [
        ("a", 1, {}),
        ("b", 2, {"beta": 3.0}),
    ]
    assert config.loss == {"name": "dfmsd", "alpha": 0.5}


def test_flags_win_over_the_file_and_leave_the_rest(file: Path) -> None:
    config = parse(file, "--student.backbone", "resnet10t", "--loss.alpha", "2", "--optim.lr=0.01", "--out", "y")
    assert (config.student.backbone, config.data.image_size, config.optim.lr, config.out) == (
        "resnet10t",
        96,
        0.01,
        "y",
    )
    assert config.loss == {"name": "dfmsd", "alpha": 2}


def test_flags_reach_into_the_list_of_stages(file: Path) -> None:
    config = parse(
        file,
        "--stages.0.epochs",
        "3",
        "--stages.1.loss.alpha",
        "2",
        "--stages.0.loss.tau=0.25",
        "--stages.1.teacher",
        "runs/c",
        "--stages.1.fresh",
        "false",
    )
    first, second = config.stages
    assert (first.teacher, first.epochs, first.loss, first.fresh) == ("a", 3, {"tau": 0.25}, True)
    assert (second.teacher, second.epochs, second.loss) == ("runs/c", 2, {"beta": 3.0, "alpha": 2})
    assert second.fresh is False


def test_several_teachers_of_a_stage_are_a_list_in_the_file_and_as_a_flag(file: Path) -> None:
    assert parse(file, "--stages.1.teacher", "[runs/c, runs/d]").stages[1].teacher == ["runs/c", "runs/d"]
    config = parse(file, "--stages", '[{"teacher": ["e", "f"], "epochs": 4}, {"teacher": null, "epochs": 1}]')
    assert [stage.teachers for stage in config.stages] == [("e", "f"), ()]
    file.write_text(DISTILL.replace("teacher: a", "teacher: [a, c.yaml]"))
    assert [stage.teachers for stage in read_config(DistillConfig, file).stages] == [("a", "c.yaml"), ("b",)]


def test_flags_reach_into_a_list_of_losses(file: Path) -> None:
    file.write_text(SUM)
    config = parse(file, "--loss.1.ratio", "0.25", "--loss.1.weight=1e-6", "--seed", "3")
    assert config.loss == [{"name": "pkd"}, {"name": "mgd", "ratio": 0.25, "weight": 1e-6}]
    assert config.stages[1].loss == [{"name": "cwd"}, {"name": "fgd", "relation": 1e-5}]
    assert config.seed == 3
    assert parse(file, "--loss", "{name: fitnet}").loss == {"name": "fitnet"}
    for flag, message in (
        ("--loss.weight", r"--loss\.weight: loss has 2 entries, counted from 0; name one, as in --loss\.0\."),
        ("--loss.2.weight", r"--loss\.2\.weight: loss has 2 entries"),
        ("--stages.0.loss.weight", r"stages\.0: loss\.name: missing; over a list of losses"),
    ):
        with pytest.raises(DfmsdError, match=message):
            parse(file, flag, "2")


def test_a_list_of_losses_is_written_and_read_again(file: Path, tmp_path: Path) -> None:
    file.write_text(SUM)
    config = read_config(DistillConfig, file)
    write_config(config, tmp_path)
    again = read_config(DistillConfig, tmp_path / "config.yaml")
    assert [part["name"] for part in again.loss] == ["pkd", "mgd"]
    assert again.loss[1] == {
        "name": "mgd",
        "ratio": 0.5,
        "pairing": "stride",
        "weight": 1e-5,
        "project": False,
        "resize": "student",
    }
    assert same_run(again, tmp_path)
    assert same_run(config, tmp_path)
    assert not same_run(replace(config, loss=[{"name": "pkd"}, {"name": "mgd"}]), tmp_path)
    assert not same_run(replace(config, loss={"name": "pkd"}), tmp_path)


def test_a_printed_config_shows_what_the_flags_into_the_list_say(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(file, "--stages.0.epochs", "7", "--print_config")
    assert end.value.code == 0
    assert "- epochs: 7\n  teacher: a\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages.5.epochs", "1"], r"--stages\.5\.epochs: stages has 2 entries, counted from 0"),
        (["--stages.0", "1"], r"--stages\.0: name the key too, such as --stages\.0\.epochs"),
        (["--stages.1.epochs"], r"--stages\.1\.epochs: give it a value"),
        (["--stages.1.epochs="], r"--stages\.1\.epochs: give it a value"),
        (["--stages.0.epochs", "[1"], r"--stages\.0\.epochs: '\[1' is no value"),
        (["--stages.0.teacher.x", "1"], r"--stages\.0\.teacher\.x: teacher has no keys"),
        (["--stages.0x.epochs", "1"], r"--stages\.0x\.epochs: stages has 2 entries"),
        (["--stages.0.loss.a.b", "1"], "loss.a: no option of dfmsd"),
        (["--stages.epochs", "3"], r"--stages\.epochs: stages has 2 entries"),
        (["--loss.0.alpha", "3"], r"--loss\.0\.alpha: loss is no list"),
    ],
)
def test_flags_into_the_list_that_mean_nothing_are_refused(file: Path, flags: list[str], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        parse(file, *flags)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("root:", "rot:", r"'rot'; did you mean data\.root\?"),
        ("backbone:", "backbon:", r"'backbon'; did you mean student\.backbone\?"),
        ("stages:", "stags:", r"'stags' is not accepted; did you mean stages\?"),
        ("teacher: a, epochs: 1", "teacher: a, epoch: 1", r"'epoch' is not accepted; did you mean epochs\?"),
        ("out:", "zzz: 1\nout:", r"'zzz' is not accepted$"),
        ("image_size: 96", "image_size: wide", r"data\.image_size"),
        ("image_size: 96", "pad: diagonal", r"data\.pad.*'square'"),
        ("{name: dfmsd, alpha: 0.5}", "dfmsd", "loss"),
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


def test_a_config_of_another_command_is_refused(file: Path) -> None:
    with pytest.raises(DfmsdError, match=r"stages|student|loss"):
        read_config(TrainConfig, file)
