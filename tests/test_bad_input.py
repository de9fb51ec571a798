"""Bad input of every kind through the command line: status 2, one line that says what to do, nothing left behind."""

from __future__ import annotations

import copy
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.helpers.bad_input import CONFIG, LONG, says, unfinished_run
from tests.helpers.bad_input import dfmsd as dfmsd
from tests.helpers.command import STUDENT, Command

from dfmsd.detectors import DetectorConfig, build_detector, save_detector

# Config files: content, and what the error has to name in addition to the file.

BOMB = "loss: {name: dfmsd, a: &a0 [x,x,x,x,x,x,x,x,x,x], " + "".join(
    f"b{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}], " for i in range(1, 9)
)
TEXTS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("expected keys and values", "write them there")),
    "a number": (b"7", ("expected keys and values",)),
    "a list": (b"[]", ("expected keys and values",)),
    "broken": (b"data: {root: x\nout: run\n", ("not valid YAML", "line", "correct it there")),
    "a colon too many": (b"a: b: c", ("not valid YAML", "line 1, column 5")),
    "a tab": (b"data:\n\troot: x\n", ("not valid YAML", "line 2, column 1")),
    "control characters": (b"out: \x00", ("not valid YAML", "unacceptable character")),
    "no text": (bytes(range(256)), ("not UTF-8 text", "save it as UTF-8", "pass a YAML file")),
    "latin-1": ("out: für".encode("latin-1"), ("not UTF-8 text",)),
    "a key twice": (b"out: a\nseed: 1\nout: b\n", ("duplicate key 'out'", "line 1")),
    "a list as key": (b"? [1, 2]\n: 3\n", ("not valid YAML", "unhashable key")),
    "too deep": (b"[" * 600 + b"]" * 600, ("not valid YAML",)),
    "aliases of aliases": ((BOMB + "}\nout: run\n").encode(), ("aliases", "10000 values", "write them out")),
    "an alias of itself": (b"a: &a [*a]\n", ("aliases", "write them out")),
    "code": (b"out: !!python/object/apply:os.system ['touch pwned']\n", ("not valid YAML", "python/object", "line 1")),
    "code by name": (b"out: !!python/name:os.system\n", ("not valid YAML", "python/name")),
}


@pytest.mark.parametrize(("text", "pieces"), TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_not_a_config(dfmsd: Command, text: bytes, pieces: tuple[str, ...]) -> None:
    (dfmsd.folder / "bad.yaml").write_bytes(text)
    says(dfmsd.refusal("distill", "--config", "bad.yaml"), ("bad.yaml", *pieces))


VALUES: list[tuple[str, Any, tuple[str, ...]]] = [
    ("data", 7, ("data: expected keys such as root, got '7'", "leave it out")),
    ("data", [], ("data: expected keys such as root, got []",)),
    ("student", None, ("student: expected keys such as arch, got 'null'",)),
    (
        "data",
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "pwned"]}},
        ("class_path", "write plain values"),
    ),
    ("data.root", "nowhere", ("data.root: no folder", "nowhere", "give the folder of a data set")),
    ("data.root", LONG, ("data.root: 'aaaa", "File name too long", "give another")),
    ("data.root", "a\0b", ("data.root: 'a\\x00b'", "null", "give another")),
    ("data.image_size", 100, ("data.image_size", "multiple of 32", "got 100")),
    ("data.image_size", 32 * 10**9, ("data.image_size", "at most 16384")),
    ("data.batch_size", 0, ("data.batch_size", "at least 1", "got 0")),
    ("data.flip", float("nan"), ("data.flip", "0 to 1", "got nan")),
    ("data.scale_jitter", [1.0, float("inf")], ("data.scale_jitter", "0 < low <= high")),
    ("data.unlabeled_ratio", float("nan"), ("data.unlabeled_ratio", "got nan")),
    ("data.unlabeled_ratio", float("inf"), ("data.unlabeled_ratio", "got inf")),
    ("data.pseudo", True, ("data.pseudo: expected keys such as score, got 'true'", "leave it out")),
    ("data.pseudo", {"score": "auto"}, ("data.pseudo: there are no images to label", "data.unlabeled")),
    ("data.pseudo.score", 1.0, ("data.pseudo.score must be auto, or above 0 and below 1, got 1.0",)),
    ("data.pseudo.score", float("nan"), ("data.pseudo.score", "got nan")),
    ("data.pseudo.score", "best", ("data.pseudo.score", "auto", "best")),
    ("data.pseudo.teacher", LONG, ("data.pseudo.teacher: 'aaaa", "File name too long")),
    ("data.pseudo.keep", "firm", ("data.pseudo.keep", "'soft'", "firm")),
    ("data.pseudo.flip", True, ("data.pseudo.flip: no image is labeled without data.pseudo.score",)),
    ("data.pseudo.image_size", "big", ("data.pseudo.image_size", "big")),
    ("data.cache", "tape", ("data.cache", "tape")),
    ("out", "", ("out: ''", "empty", "give another")),
    ("out", LONG, ("out: 'aaaa", "File name too long")),
    ("out", "a\0b", ("out: 'a\\x00b'", "null")),
    ("out", "good.yaml", ("out: good.yaml is a file", "name a folder")),
    ("out", 7, ("out: expected str", "7")),
    ("seed", 1.5, ("seed: expected int", "1.5")),
    ("seed", -1, ("seed must be in 0..4294967295, got -1",)),
    ("optim.lr", float("inf"), ("optim.lr must be above 0, got inf",)),
    ("optim.clip", float("nan"), ("optim.clip must be at least 0, got nan",)),
    ("optim.schedule", "soon", ("optim.schedule", "soon", "'restart'")),
    ("precision", 64, ("precision: expected one of", "64", "bf16")),
    ("loss", None, ("loss must be a string or a mapping or a list, got None",)),
    ("loss", [], ("loss: the list is empty", "add at least one")),
    ("loss", {7: 8}, ("loss: 7", "write a loss as")),
    ("loss", {"name": ["dfmsd"]}, ("loss: ['dfmsd']", "write a loss as")),
    ("loss", {"name": "dfmds"}, ("loss.name: unknown loss 'dfmds'", "the losses are", "dfmsd")),
    ("loss", {"alpha": float("nan")}, ("loss.alpha must be finite, got nan",)),
    ("loss", {"weight": float("inf")}, ("loss.weight must be finite, got inf",)),
    ("loss", {"alpha": "high"}, ("loss.alpha must be a number, got 'high'",)),
    ("balance", float("nan"), ("balance must be above 0", "got nan")),
    ("stages", [], ("stages: the list is empty", "give at least one stage")),
    ("stages", [7], ("stages: expected keys of StageConfig", "7")),
    ("stages", [{"epochs": 0}], ("stages.0.epochs must be at least 1, got 0", "remove the stage")),
    ("stages", [{"epochs": 1, "teacher": [""]}], ("stages.0.teacher has an empty name", "leave it out")),
    ("stages", [{"epochs": 1, "teacher": LONG}], ("teacher: 'aaaa", "File name too long")),
    ("stages", [{"epochs": 1, "teacher": "a\0b"}], ("teacher: 'a\\x00b'", "null")),
    ("stages", [{"epochs": 2, "teacher": "a", "basis": "former"}], ("stages.0.basis: former needs a stage before it",)),
    ("stages", [{"epochs": 9, "near": True}], ("stages.0.near: the stage has no teachers", "give it exactly one")),
    ("stages", [{"epochs": 9, "near": "soon"}], ("near must be true, false, auto or a mapping", "got 'soon'")),
    ("stages", [{"epochs": 9, "near": 7}], ("stages: near: ", "7")),
    (
        "stages",
        [{"epochs": 9, "teacher": ["a", "b"], "near": True}],
        ("stages.0.near: the stage has 2 teachers", "give it exactly one", "leave near out"),
    ),
    (
        "stages",
        [{"epochs": 1, "teacher": "a", "near": True}],
        ("stages.0.near: a share of 0.33 of 1 epoch(s) leaves none", "more epochs"),
    ),
    (
        "stages",
        [{"epochs": 9, "teacher": "a", "near": {"share": 0}}],
        ("near.share must be above 0 and below 1, got 0.0",),
    ),
    ("stages", [{"epochs": 9, "teacher": "nowhere", "near": True}], ("stages.0.near: no detector at 'nowhere'",)),
    ("loss", {"pairing": {"p3": "p2", "p4": "p2"}}, ("loss.pairing", "p2")),
    ("student", {**STUDENT, "fpn_channels": 0}, ("fpn_channels must be an integer of at least 1, got 0",)),
    ("student", {**STUDENT, "backbone": "resnet19"}, ("unknown backbone 'resnet19'", "did you mean")),
    ("student", {**STUDENT, "arch": "yolo"}, ("unknown arch 'yolo'", "expected one of fcos")),
    ("student", {**STUDENT, "pretrained": LONG}, ("weights file: 'aaaa", "File name too long")),
]


@pytest.mark.parametrize(("key", "value", "pieces"), VALUES, ids=[f"{key}-{str(v)[:20]}" for key, v, _ in VALUES])
def test_a_config_with_a_bad_value(dfmsd: Command, key: str, value: Any, pieces: tuple[str, ...]) -> None:
    content = copy.deepcopy(CONFIG)
    *parents, last = key.split(".")
    part = content
    for parent in parents:
        part = part.setdefault(parent, {})
    part[last] = value
    (dfmsd.folder / "bad.yaml").write_text(yaml.safe_dump(content))
    says(dfmsd.refusal("distill", "--config", "bad.yaml"), pieces)


def test_a_refused_value_is_reported_with_its_file(dfmsd: Command) -> None:
    assert "(in good.yaml or the flags)" in dfmsd.refusal("distill", "--config", "good.yaml", "--optim.lr", "0")
    assert "dfmsd distill --help and good.yaml" in dfmsd.refusal("distill", "--config=good.yaml", "--seed", "x")
    dfmsd.write("teacher.yaml", {"out": "teacher", "optim": {"lr": 0}})
    error = dfmsd.refusal("distill", "--config", "good.yaml", "--stages", "[{teacher: teacher.yaml, epochs: 1}]")
    says(error, ("teacher.yaml: optim.lr must be above 0, got 0",))


NEAR = ["--stages", "[{teacher: a, epochs: 9, near: true}]"]


@pytest.mark.parametrize("arch", ["hf:some/detr", "mmdet:some.py", "fasterrcnn_resnet50_fpn", "python:mine.Detector"])
def test_no_near_teacher_for_a_student_that_brings_its_own_backbone(dfmsd: Command, arch: str) -> None:
    dfmsd.write("whole.yaml", {**CONFIG, "student": {"arch": arch}})
    error = dfmsd.refusal("distill", "--config", "whole.yaml", *NEAR)
    says(error, (f"stages.0.near: {arch} brings its own backbone", "choose a student from fcos", "leave near out"))


def test_a_teacher_that_names_itself(dfmsd: Command) -> None:
    for name, teacher in (("a.yaml", "b.yaml"), ("b.yaml", "a.yaml"), ("own.yaml", "own.yaml")):
        dfmsd.write(name, {**CONFIG, "out": name.removesuffix(".yaml"), "stages": [{"epochs": 1, "teacher": teacher}]})
    for command in ("distill", "check", "estimate"):
        error = dfmsd.refusal(command, "--config", "own.yaml")
        says(error, ("teacher own.yaml names itself as its teacher; name another one there",))
        error = dfmsd.refusal(command, "--config", "a.yaml")
        says(error, ("teacher b.yaml names itself as its teacher, through a.yaml; name another one there",))


# Command lines.

LINES: list[tuple[list[str], tuple[str, ...]]] = [
    ([], ("command", "see dfmsd --help")),
    (["distil"], ("invalid choice: 'distil'", "see dfmsd --help")),
    (["--verson"], ("unrecognized arguments: --verson", "did you mean --version?")),
    (["distill"], ("out", "see dfmsd distill --help")),
    (["distill", "--config"], ("--config", "expected one argument")),
    (["distill", "--config", "none.yaml"], ("File does not exist", "none.yaml")),
    (["distill", "--config", "data"], ("not a file", "data")),
    (["distill", "--config", LONG], ("aaaa",)),
    (["distill", "--config", "https://example.org/a.yaml"], ("File does not exist",)),
    (["distill", "--config", "good.yaml", "more"], ("unrecognized arguments: more",)),
    (["distill", "--config", "good.yaml", "--stages.0"], ("--stages.0", "name the key too")),
    (["distill", "--config", "good.yaml", "--stages.²", "1"], ("--stages.²", "counted from 0")),
    (["distill", "--config", "good.yaml", "--stages.-1.epochs", "1"], ("--stages.-1.epochs", "counted from 0")),
    (["distill", "--config", "good.yaml", "--stages.0.epochs", "["], ("--stages.0.epochs", "not valid YAML")),
    (["distill", "--config", "good.yaml", "--loss.name.x", "2"], ("--loss.name.x", "name has no keys")),
    (
        ["distill", "--config", "good.yaml", "--resume"],
        ("run holds no run", "leave out --resume", "name its folder with --out"),
    ),
    (["distill", "--config", "good.yaml", "--resume", "--overwrite"], ("pass one of them",)),
    (["train", "--data", "7", "--out", "r"], ("data: ", "7")),
    (["train", "--out", "r", "--epochs", "1e99"], ("epochs: expected int", "1e+99")),
    (["evaluate", "--model", "", "--data", "data"], ("model or teacher: ''", "empty", "give another")),
    (["evaluate", "--model", LONG, "--data", "data"], ("model or teacher: 'aaaa", "File name too long")),
    (["evaluate", "--model", "hf:", "--data", "data"], ("hf:",)),
    (["evaluate", "--model", "timm:resnet19", "--data", "data"], ("unknown backbone 'resnet19'",)),
    (["evaluate", "--model", "mmdet:,", "--data", "data"], ("mmdet:CONFIG.py,CHECKPOINT.pth",)),
    (["evaluate", "--model", "gopher:x", "--data", "data"], ("unknown prefix 'gopher:'",)),
    (["compare", "--out", "x", "--pairs", "{../a: [b]}", "--methods", "pkd"], ("pairs: '../a'", "letters")),
    (["compare", "--out", "x", "--pairs", "{a: [b]}", "--methods", "pkd["], ("'pkd['", "position 5")),
    (
        ["compare", "--out", "x", "--pairs", "{a: [b]}", "--methods", "pkd", "--seeds", "-1"],
        ("seeds must be at least 0",),
    ),
    (["compare", "--out", "", "--pairs", "{a: [b]}", "--methods", "pkd"], ("out: ''", "empty")),
    (["list", "all"], ("invalid choice: 'all'",)),
]


@pytest.mark.parametrize(("line", "pieces"), LINES, ids=[" ".join(line)[:50] or "nothing" for line, _ in LINES])
def test_a_bad_command_line(dfmsd: Command, line: list[str], pieces: tuple[str, ...]) -> None:
    says(dfmsd.refusal(*line), pieces)


# Checkpoints.


def described(**values: Any) -> Callable[[Path], object]:
    """Replace parts of the description of a detector."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "student.json").read_text())
        (folder / "student.json").write_text(json.dumps({**content, **values}))

    return edit


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def renamed(folder: Path) -> None:
    state = load_file(folder / "student.safetensors")
    state["other"] = state.pop(next(iter(state)))
    save_file(state, folder / "student.safetensors")


WEIGHTS, WORDS = "student.safetensors", "student.json"
NOT_OURS = (WORDS, "does not describe a detector", "use the file that was written")
DETECTOR = {"arch": "fcos", **STUDENT}
MODELS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), (WEIGHTS, "pass the folder of a finished run")),
    "no description": (lambda folder: (folder / WORDS).unlink(), (WORDS, "is missing", "copy both files")),
    "empty weights": (written(WEIGHTS, b""), (WEIGHTS, "not a checkpoint", "pass a .safetensors file")),
    "weights of noise": (written(WEIGHTS, bytes(range(256))), (WEIGHTS, "not a checkpoint")),
    "header without end": (written(WEIGHTS, b"\xff" * 8 + b"{}"), (WEIGHTS, "not a checkpoint")),
    "other weights": (renamed, (WEIGHTS, "does not fit the model", "other")),
    "description of noise": (written(WORDS, b"\xff\xfe"), (WORDS, "it is not valid JSON")),
    "description too deep": (written(WORDS, b"[" * 100_000), (WORDS, "it is not valid JSON")),
    "description of a list": (written(WORDS, b"[]"), (WORDS, "format_version None")),
    "a later format": (described(format_version=99), (WORDS, "format_version 99", "update dfmsd")),
    "no detector": (described(detector=None), NOT_OURS),
    "a detector of more": (described(detector={**DETECTOR, "depth": 3}), (*NOT_OURS, "depth")),
    "an unknown detector": (described(detector={**DETECTOR, "arch": "yolo"}), ("unknown arch 'yolo'",)),
    "wide as a word": (described(detector={**DETECTOR, "fpn_channels": "wide"}), NOT_OURS),
    "absurdly wide": (described(detector={**DETECTOR, "fpn_channels": 10**9}), NOT_OURS),
    "classes of a word": (described(class_names="ab"), (*NOT_OURS, "class_names")),
    "a class twice": (described(class_names=["disc", "disc"]), (*NOT_OURS, "class_names")),
    "mean of one": (described(image_mean=[0.5]), (*NOT_OURS, "image_mean")),
    "mean of nan": (described(image_mean=[float("nan")] * 3), (*NOT_OURS, "out of range")),
    "deviation of zero": (described(image_std=[0.0, 1.0, 1.0]), (*NOT_OURS, "out of range")),
    "levels of null": (described(levels=None), NOT_OURS),
    "other levels": (described(levels=[{"name": "p3", "channels": 1, "stride": 8}]), (WORDS, "lists levels")),
    "config of noise": (written("config.yaml", b"\xff\xfe"), ("config.yaml is damaged", "restore it")),
    "config of a list": (written("config.yaml", b"[]"), ("config.yaml is damaged", "no keys")),
    "config without size": (written("config.yaml", b"data: 7"), ("config.yaml", "with --image-size")),
}


@pytest.mark.parametrize(("damage", "pieces"), MODELS.values(), ids=MODELS)
def test_a_bad_model(dfmsd: Command, model: Path, damage: Callable[[Path], object], pieces: tuple[str, ...]) -> None:
    shutil.copytree(model, dfmsd.folder / "model")
    damage(dfmsd.folder / "model")
    says(dfmsd.refusal("evaluate", "--model", "model", "--data", "data"), pieces)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sound detector."""
    folder = tmp_path_factory.mktemp("model")
    save_detector(build_detector(DetectorConfig(**DETECTOR), ["square", "disc"]), folder)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + b"\0" * 200], ids=["empty", "text", "zip"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_bad_file_of_pretrained_weights(dfmsd: Command, name: str, content: bytes) -> None:
    (dfmsd.folder / name).write_bytes(content)
    error = dfmsd.refusal("distill", "--config", "good.yaml", "--student.pretrained", name)
    says(error, (name, "is not a checkpoint", "pass a .safetensors file"))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, torch.zeros(1), 7])
def test_pretrained_weights_of_another_kind(dfmsd: Command, content: object) -> None:
    torch.save(content, dfmsd.folder / "weights.pth")
    error = dfmsd.refusal("distill", "--config", "good.yaml", "--student.pretrained", "weights.pth")
    says(error, ("weights.pth", "expected parameter name -> tensor"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + b"\0" * 200], ids=["empty", "text", "zip"])
def test_a_bad_checkpoint_is_not_resumed(dfmsd: Command, content: bytes) -> None:
    (unfinished_run(dfmsd.folder) / "last.ckpt").write_bytes(content)
    error = dfmsd.refusal("train", "--config", "run/config.yaml", "--resume")
    says(error, ("run/last.ckpt is damaged", "--resume starts the run again"))


# In new processes.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "piece"),
    [
        (["distill", "--config", "good.yaml", "--optim.lr", "nan"], "optim.lr"),
        (["train", "--out", "r", "--data.root", "nowhere"], "nowhere"),
    ],
)
def test_a_process_ends_within_ten_seconds(dfmsd: Command, line: list[str], piece: str) -> None:
    command = [sys.executable, "-m", "dfmsd", *line]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=dfmsd.folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10  # other processes do not count
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dfmsd: error: ")
    assert done.stderr.count("\n") == 1
    assert piece in done.stderr
