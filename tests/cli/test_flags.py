from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.yaml_configs import DISTILL, SUM

from dfmsd.cli.flags import config_files, in_flags, merge_list_flags, parsed_config, split_lists
from dfmsd.distillation.stages import NearConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import config_parser, read_config
from dfmsd.errors import DfmsdError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "distill.yaml"
    path.write_text(DISTILL)
    return path


def parse(file: Path, *flags: str) -> DistillConfig:
    parser = config_parser(DistillConfig)
    arguments = merge_list_flags(parser, ["--config", str(file), *flags])
    return parsed_config(DistillConfig, parser.instantiate(parser.parse_args(arguments)))


def test_flags_override_the_file(file: Path) -> None:
    config = parse(file, "--student.backbone", "resnet10t", "--loss.alpha", "2", "--optim.lr=0.01", "--out", "y")
    assert (config.student.backbone, config.data.image_size, config.optim.lr, config.out) == (
        "resnet10t",
        96,
        0.01,
        "y",
    )
    assert config.loss == {"name": "dfmsd", "alpha": 2}


def test_flags_change_single_stages(file: Path) -> None:
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


def test_a_stage_takes_a_list_of_teachers(file: Path) -> None:
    assert parse(file, "--stages.1.teacher", "[runs/c, runs/d]").stages[1].teacher == ["runs/c", "runs/d"]
    config = parse(file, "--stages", '[{"teacher": ["e", "f"], "epochs": 4}, {"teacher": null, "epochs": 1}]')
    assert [stage.teachers for stage in config.stages] == [("e", "f"), ()]
    file.write_text(DISTILL.replace("teacher: a", "teacher: [a, c.yaml]"))
    assert [stage.teachers for stage in read_config(DistillConfig, file).stages] == [("a", "c.yaml"), ("b",)]


def test_flags_describe_a_near_teacher(file: Path) -> None:
    assert parse(file, "--stages.0.epochs", "9", "--stages.0.near", "true").stages[0].near == NearConfig()
    assert parse(file, "--stages.0.near", "auto").stages[0].near == "auto"
    changes = ["--stages.0.epochs", "9", "--stages.0.near.bridge", "true", "--stages.0.near.epochs=4"]
    assert parse(file, *changes).stages[0].near == NearConfig(bridge=True, epochs=4)
    file.write_text(DISTILL.replace("teacher: a, epochs: 1", "teacher: a, epochs: 9, near: {epochs: 2, share: 0.5}"))
    assert parse(file, "--stages.0.near.epochs", "3").stages[0].near == NearConfig(epochs=3, share=0.5)


def test_flags_change_single_losses_of_a_list(file: Path) -> None:
    file.write_text(SUM)
    config = parse(file, "--loss.1.ratio", "0.25", "--loss.1.weight=1e-6", "--seed", "3")
    assert config.loss == [{"name": "pkd"}, {"name": "mgd", "ratio": 0.25, "weight": 1e-6}]
    assert config.stages[1].loss == [{"name": "cwd"}, {"name": "fgd", "relation": 1e-5}]
    assert config.seed == 3
    assert parse(file, "--loss", "{name: fitnet}").loss == {"name": "fitnet"}
    for flag, message in (
        ("--loss.weight", r"--loss\.weight: loss has 2 entries, counted from 0; pass --loss\.0\.KEY"),
        ("--loss.2.weight", r"--loss\.2\.weight: loss has 2 entries"),
        ("--stages.0.loss.weight", r"stages\.0: loss\.name: missing; the loss of a stage replaces a list of losses"),
    ):
        with pytest.raises(DfmsdError, match=message):
            parse(file, flag, "2")


@pytest.mark.parametrize(
    "flags", [["--loss.pairing", "{p3: p2, p4: p3}"], ["--loss.pairing.p3=p2", "--loss.pairing.p4=p3"]]
)
def test_flags_state_pairs_of_levels(file: Path, flags: list[str]) -> None:
    assert parse(file, *flags).loss == {"name": "dfmsd", "alpha": 0.5, "pairing": {"p3": "p2", "p4": "p3"}}
    assert parse(file, "--stages.1.loss.pairing", "auto").stages[1].loss["pairing"] == "auto"


def test_a_printed_config_includes_flags_into_lists(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(file, "--stages.0.epochs", "7", "--print-config")
    assert end.value.code == 0
    assert "- epochs: 7\n  teacher: a\n" in capsys.readouterr().out


def test_options_of_a_loss_that_is_a_name(file: Path) -> None:
    file.write_text("stages: [{teacher: a, epochs: 1, loss: cwd}]\nloss: pkd\nout: x\n")
    config = parse(file, "--loss.weight", "2", "--stages.0.loss.weight", "3")
    assert (config.loss["name"], config.loss["weight"]) == ("pkd", 2)
    assert config.stages[0].loss == {"name": "cwd", "weight": 3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages.5.epochs", "1"], r"--stages\.5\.epochs: stages has 2 entries, counted from 0"),
        (["--stages.0", "1"], r"--stages\.0: name the key too, such as --stages\.0\.epochs"),
        (["--stages.1.epochs"], r"--stages\.1\.epochs: its value is missing"),
        (["--stages.1.epochs="], r"--stages\.1\.epochs: its value is missing"),
        (["--stages.0.epochs", "[1"], r"--stages\.0\.epochs: '\[1' is not valid YAML"),
        (["--stages.0.teacher.x", "1"], r"--stages\.0\.teacher\.x: teacher has no keys"),
        (["--stages.0x.epochs", "1"], r"--stages\.0x\.epochs: stages has 2 entries"),
        (["--stages.0.loss.a.b", "1"], "loss.a: dfmsd has no such option"),
        (["--stages.epochs", "3"], r"--stages\.epochs: stages has 2 entries"),
        (["--stages", "[]", "--stages.0.epochs", "1"], r"stages has 0 entries, .*; pass a --config with stages"),
        (["--loss.0.alpha", "3"], r"--loss\.0\.alpha: loss is not a list"),
    ],
)
def test_bad_flags_into_lists_are_refused(file: Path, flags: list[str], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        parse(file, *flags)


def test_lists_need_no_brackets() -> None:
    arguments = ["--methods", "none,dfmsd[beta=0,ratio=0.5]@T1+T2", "--seeds=3,4", "--out", "x"]
    assert split_lists(arguments) == [
        "--methods",
        '["none", "dfmsd[beta=0,ratio=0.5]@T1+T2"]',
        "--seeds",
        "[3, 4]",
        "--out",
        "x",
    ]
    assert split_lists(["--seeds", "[1, 2]"]) == ["--seeds", "[1, 2]"]
    for spaced in (["0", "1", "2"], ["0,", "1", ",2"], ["0, 1", "2"]):
        assert split_lists(["--seeds", *spaced, "--jobs", "2"]) == ["--seeds", "[0, 1, 2]", "--jobs", "2"]
    assert split_lists(["--methods", "none", "dfmsd[a=1,b=2],pkd"]) == [
        "--methods",
        '["none", "dfmsd[a=1,b=2]", "pkd"]',
    ]
    assert split_lists(["--methods", "[none]", "pkd"]) == ["--methods", "[none]", "pkd"]  # refused by the parser


def test_config_files_are_found_in_both_spellings() -> None:
    assert config_files(["--config=a.yaml", "--out", "x", "--config", "b.yaml"]) == [Path("a.yaml"), Path("b.yaml")]


def test_parameters_are_named_as_flags() -> None:
    parser = config_parser(DistillConfig)
    parser.add_argument("--check-images", type=int)
    said = in_flags("`check_images`, `seed` or `teacher_cache`, not `square` or `data.root`", parser)
    assert said == "--check-images, --seed or --teacher_cache, not `square` or `data.root`"
