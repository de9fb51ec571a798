from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.command import Command
from tests.helpers.fixtures import TINY_BACKBONE

from dfmsd import __version__
from dfmsd.cli import main as cli
from dfmsd.detectors import list_backbones
from dfmsd.errors import PREEMPTED, DfmsdError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil"], r"invalid choice: 'distil'.*see dfmsd --help$"),
        ([], r"command.*see dfmsd --help$"),
        (["distill"], r"out.*see dfmsd distill --help$"),
        (["distill", "--config", "none.yaml"], r"File does not exist: .*none\.yaml'; see dfmsd distill --help$"),
        (["distill", "my.yaml"], r"unrecognized arguments: my\.yaml; write --config my\.yaml; see"),
        (["train", "--config", "none.yaml"], r"File does not exist: .*none\.yaml"),
        (["train", "--out", "run", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["evaluate", "--data", "nowhere"], "model"),
        (["evaluate", "--model", "none", "--data", "nowhere"], "no detector at 'none'"),
        (["list", "all"], "invalid choice: 'all'"),
        (["evaluat"], r"did you mean evaluate\?; see dfmsd --help$"),
        (["list", "loss"], r"did you mean losses\?"),
        (["train", "--out", "run", "--overwrit"], r"did you mean --overwrite\?"),
        (["train", "--out", "run", "--modl.arch", "gfl"], r"did you mean --model\.arch\?"),
        (["predict", "--scor", "1", "x.jpg"], r"did you mean --score\?"),
        (["distill", "--epochs", "3"], r"arguments: --epochs 3; did you mean --stages\.0\.epochs\?"),
        (["distill", "--teacher", "runs/a"], r"arguments: --teacher runs/a; did you mean --stages\.0\.teacher\?"),
        (["train", "--lr", "0.1"], r"arguments: --lr 0\.1; did you mean --optim\.lr\?"),
        (["distill", "--device", "cpu"], r"--device cpu; the GPU is used if there is one; CUDA_VISIBLE_DEVICES="),
        (["evaluate", "--model", "a", "--data", "b", "--device", "cpu"], "CUDA_VISIBLE_DEVICES="),
        (["convert", "folder"], "missing: --out"),
        (
            ["distill", "--logger", "wandb", "mlflow"],
            r"--logger: a list is one argument, .*: --logger '\[wandb, mlflow\]'",
        ),
        (["train", "--data.multi_scale=0.8", "1.2", "--epochs", "3"], r"--data\.multi_scale '\[0\.8, 1\.2\]'"),
        (["distill", "--stages.0.teacher", "a", "b"], r"--stages\.0\.teacher '\[a, b\]'"),
        (["compare", "--methods", "[none]", "pkd"], r"unrecognized arguments: pkd; see"),
        (["train", "--epochs", "3", "4"], r"unrecognized arguments: 4; see"),
        (["train", "3"], r"unrecognized arguments: 3; see"),
        (
            ["train", "--out", "run", "--optim.name", "adam"],
            r"optim\.name: expected one of 'auto', 'lamb', 'adamw', 'sgd', got adam",
        ),
    ],
)
def test_a_bad_command_is_refused(dfmsd: Command, arguments: list[str], message: str) -> None:
    assert re.search(message, dfmsd.refusal(*arguments).strip())


@pytest.mark.parametrize("flag", ["--out=~/found", "--out ~/found"])
def test_a_tilde_that_the_shell_leaves_is_the_home_directory(
    dfmsd: Command, tiny_root: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setenv("HOME", str(dfmsd.folder / "home"))
    assert dfmsd("convert", tiny_root, "--to", "yolo", *flag.split())[0] == 0
    assert (dfmsd.folder / "home" / "found" / "data.yaml").is_file()
    assert not (dfmsd.folder / "~").exists()


def test_broken_yaml_is_refused(dfmsd: Command) -> None:
    (dfmsd.folder / "broken.yaml").write_text("data: {root: x\nout: run\n")
    assert "broken.yaml: not valid YAML" in dfmsd.refusal("distill", "--config", "broken.yaml")


def test_debug_shows_the_traceback(dfmsd: Command) -> None:
    with pytest.raises(DfmsdError, match="invalid choice: 'distil'"):
        dfmsd("--debug", "distil")


def test_ctrl_c_outside_of_a_run_exits_with_130(dfmsd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "list", cli.COMMANDS["list"]._replace(run=press))
    assert dfmsd("list", "losses") == (130, "", "dfmsd: interrupted\n")


def test_list_prints_the_names(dfmsd: Command) -> None:
    losses, detectors, backbones = (dfmsd("list", what)[1].split() for what in ("losses", "detectors", "backbones"))
    assert "dfmsd" in losses
    assert detectors[:5] == ["faster_rcnn", "fcos", "gfl", "retinanet", "ssdlite"]
    assert {"ssd300_vgg16", "maskrcnn_resnet50_fpn_v2"} <= set(detectors[5:])
    assert {"crosskd", "ld"} <= set(losses)
    assert backbones == list_backbones()


def test_version_is_printed(dfmsd: Command) -> None:
    assert dfmsd("--version") == (0, f"dfmsd {__version__}\n", "")


def test_help_names_every_command(dfmsd: Command) -> None:
    status, out, _ = dfmsd("--help")
    assert status == 0
    assert out.split()[:2] == ["usage:", "dfmsd"]
    assert set(cli.COMMANDS) <= set(out.split())
    assert "Train a detector on labels alone." in out
    assert "--debug" in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_is_plain(dfmsd: Command, command: str) -> None:
    status, out, _ = dfmsd(command, "--help")
    assert status == 0
    assert out.startswith(f"usage: dfmsd {command} ")
    for noise in (
        "type:",
        "<class",
        "default: null",
        "default: False",
        "default: [])",
        "default: {})",
        "``",
        "Show program",
    ):
        assert noise not in out
    described = " ".join(out.split())
    assert not re.search(r"\(default: \S+\) \(default|required, default|by default \((required|default)", described)
    flags = re.findall(r"^  (--[\w.-]+)", out, flags=re.MULTILINE)
    keys = [field.name for field in fields(config)] if (config := cli.COMMANDS[command].config) else []
    assert all("_" not in flag for flag in flags if flag[2:].partition(".")[0] not in keys)


def test_help_tells_required_arguments_from_optional_ones(dfmsd: Command) -> None:
    students, check, predict = (" ".join(dfmsd(name, "--help")[1].split()) for name in ("students", "check", "predict"))
    assert "a dozen small ones by default options: -h" in students
    assert "(default: 320) --runtime" in students
    assert "--out OUT run folder. (default: runs/student)" in check
    assert "image and video files, or folders of them (required)" in predict


STARTUP = """
import sys
import dfmsd.losses
SLOW = {"pytorch_lightning", "timm", "torchvision"}
assert not SLOW & sys.modules.keys(), "a loss alone needs neither engine nor detectors"
import runpy
sys.argv = ["dfmsd", *sys.argv[1:]]
try:
    runpy.run_module("dfmsd", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert end.code == 2, end.code
    assert not SLOW & sys.modules.keys(), "a refusal must not wait for engine and detectors"
    print("as expected")
"""


def test_losses_and_refusals_import_neither_lightning_nor_torchvision() -> None:
    command = [sys.executable, "-c", STARTUP, "distill", "--out", "run", "--loss.name", "mgdd"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "as expected\n"), done.stderr
    assert done.stderr.startswith("dfmsd: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_closed_terminal_saves_the_run(tmp_path: Path, tiny_root: Path) -> None:
    """In the first epoch; nothing can be printed after the terminal is gone."""
    flags = ["--data.root", tiny_root, "--data.image_size", 64, "--data.batch_size", 1, "--epochs", 50, "--out", "run"]
    flags += ["--model.backbone", TINY_BACKBONE, "--model.head_convs", 1, "--eval_every", 50]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *map(str, flags)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    log = tmp_path / "run" / "log.csv"
    while not log.exists() or log.read_text().count("\n") < 2:
        assert process.poll() is None
        time.sleep(0.01)
        with suppress(BlockingIOError):
            os.read(ours, 100_000)
    os.close(ours)
    assert process.wait(60) == PREEMPTED
    assert (tmp_path / "run" / "last.ckpt").exists()
    assert (tmp_path / "run" / "student.safetensors").exists()


TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = ["dfmsd", "train", *sys.argv[1:]]
runpy.run_module("dfmsd", run_name="__main__", alter_sys=True)
"""


def test_output_that_nobody_reads_is_no_error() -> None:
    command = [sys.executable, "-m", "dfmsd", "list", "losses"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
