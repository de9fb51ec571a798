from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE

import dfmsd
from dfmsd.data import DataConfig
from dfmsd.errors import DfmsdError

STUDENT = dfmsd.DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=16, head_convs=1)
TEACHER, DATA = "runs/teacher", "digits"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epoch": 1}, "no setting 'epoch'; did you mean epochs?"),
        ({"balence": 1}, "no setting 'balence'; did you mean balance?"),
        ({"epochs": np.float64(1.5)}, "epochs must be an integer or a list, got 1.5"),
        ({"epochs": np.array([1, 2])}, "epochs: 2 numbers for 1 stages; pass one for each stage, or their sum"),
        ({"optim": {"lrr": 1}}, "unknown key optim.lrr; did you mean optim.lr?"),
        ({"optim": 0.1}, "optim: expected keys of OptimConfig, got float"),
        ({"loss": "pkdd"}, "loss.name: unknown loss 'pkdd'"),
        ({"loss": {"nam": "pkd"}}, "loss.nam: dfmsd has no such option"),
        ({"overwrite": "no"}, "overwrite must be true or false, got 'no'"),
        ({"check_images": "1"}, "check_images must be an integer, got '1'"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(DfmsdError, match=f"^{re.escape(said)}") as caught:
        dfmsd.distill(STUDENT, TEACHER, DATA, tmp_path / "run", **values)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["pkd", {"name": "pkd"}])
def test_values_of_other_libraries_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loss: Any) -> None:
    runs: list[dfmsd.DistillConfig] = []
    monkeypatch.setattr("dfmsd.engine.run.distill", lambda config, **_: runs.append(config))
    monkeypatch.setattr("dfmsd.api.runs._reported", lambda *_: None)
    data = DataConfig(root=tmp_path / "data", image_size=np.int64(64))  # type: ignore[arg-type]
    optim = {"lr": np.float32(0.5), "warmup": np.int64(3)}
    teachers = [tmp_path / "a", tmp_path / "b"]
    epochs: Any = np.array([1, 2])
    dfmsd.distill("fcos", teachers, data, tmp_path / "run", epochs=epochs, loss=loss, optim=optim)  # type: ignore[call-overload]
    [config] = runs
    assert config.student.arch == "fcos"
    assert (config.data.root, config.data.image_size) == (str(tmp_path / "data"), 64)
    assert (config.optim.lr, config.optim.warmup) == (0.5, 3)
    assert [(stage.teacher, stage.epochs) for stage in config.stages] == [(str(teachers[0]), 1), (str(teachers[1]), 2)]
    assert config.loss == {"name": "pkd"}
    assert type(config.data.image_size) is int


def calls(run: str, root: str) -> dict[str, tuple[Callable[[], object], str]]:
    config = dfmsd.DistillConfig(out="run", stages=[dfmsd.StageConfig(1, "a")])
    table = dfmsd.CompareConfig("table", {"a": ["b"]}, ["pkd"])
    bad: Any = "7"
    return {
        "device": (lambda: dfmsd.evaluate(run, root, device="gpu"), "device: unknown device 'gpu'; expected cpu, cuda"),
        "limit": (
            lambda: dfmsd.evaluate(run, root, limit=bad),
            "limit must be .*an integer",
        ),
        "amp": (
            lambda: dfmsd.evaluate(run, root, amp="bf16"),  # type: ignore[arg-type]
            "amp must be a floating type, such as torch.bfloat16, or None, got 'bf16'",
        ),
        "score": (lambda: dfmsd.predict(run, root, "out", score=bad), "`score` must be a number"),
        "images": (lambda: dfmsd.report(run, images=bad), "images must be an integer, got '7'"),
        "export": (lambda: dfmsd.export(run, "torch", images=7), "images must be a string"),  # type: ignore[arg-type]
        "jobs": (lambda: dfmsd.compare(table, jobs=bad), "jobs must be an integer, got '7'"),
        "teachers": (lambda: dfmsd.rank_teachers(config, bad), "teachers must be a list, got '7'"),
        "check": (lambda: dfmsd.check(config, check_images=bad), "check_images must be an integer, got '7'"),
    }


@pytest.mark.parametrize("name", calls("", ""))
def test_a_bad_argument_of_any_function_is_refused(name: str, tiny_teachers: tuple[str, str], tiny_root: Path) -> None:
    call, said = calls(tiny_teachers[0], str(tiny_root))[name]
    with pytest.raises(DfmsdError, match=said):
        call()


def calls_with(given: Any) -> dict[str, Callable[[], object]]:
    """Return calls with something in place of a path or reference, by the name of the parameter."""
    return {
        "model of evaluate": lambda: dfmsd.evaluate(given, "digits"),
        "out of evaluate": lambda: dfmsd.evaluate("runs/a", "digits", out=given),
        "out of predict": lambda: dfmsd.predict("runs/a", "photos", given),
        "images of predict": lambda: dfmsd.predict("runs/a", given, "out"),
        "images of visualize": lambda: dfmsd.visualize("runs/a", "runs/b", [given], "out"),
        "model of export": lambda: dfmsd.export(given),
        "bundle of export": lambda: dfmsd.export("runs/a", bundle=given),
        "web of export": lambda: dfmsd.export("runs/a", web=given),
        "json of measure_students": lambda: dfmsd.measure_students(json=given),
        "model of visualize": lambda: dfmsd.visualize(given, "runs/b", "photos", "out"),
        "teacher of visualize": lambda: dfmsd.visualize("runs/a", given, "photos", "out"),
        "out of visualize": lambda: dfmsd.visualize("runs/a", "runs/b", "photos", given),
        "run of report": lambda: dfmsd.report(given),
        "baseline of report": lambda: dfmsd.report("runs/a", baseline=given),
        "teacher of report": lambda: dfmsd.report("runs/a", teacher=[given]),
        "run of share": lambda: dfmsd.share(given, "out"),
        "out of share": lambda: dfmsd.share("runs/a", given),
        "baseline of share": lambda: dfmsd.share("runs/a", "out", baseline=given),
        "data of inspect_data": lambda: dfmsd.inspect_data(given),
        "out of inspect_data": lambda: dfmsd.inspect_data("digits", out=given),
        "source of convert": lambda: dfmsd.convert(given, "out"),
        "out of convert": lambda: dfmsd.convert("digits", given),
        "json of estimate": lambda: dfmsd.estimate("my.yaml", json=given),
    }


@pytest.mark.parametrize("name", calls_with(None))
def test_what_is_neither_a_path_nor_a_reference_is_refused(tmp_path: Path, name: str) -> None:
    parameter = name.partition(" ")[0]
    with pytest.raises(
        DfmsdError, match=rf"^{parameter}(: expected .*, got float| must be a string, got 0.5)$"
    ) as caught:
        calls_with(0.5)[name]()
    assert "\n" not in str(caught.value)


def test_a_detector_is_no_reference(tiny_teachers: tuple[str, str]) -> None:
    detector: Any = dfmsd.load_detector(tiny_teachers[0])
    said = r"^model: expected a path or .*, got \w+Detector; save it with `save_detector` and pass its folder$"
    for call in (lambda: dfmsd.export(detector), lambda: dfmsd.visualize(detector, "a", "photos", "out")):
        with pytest.raises(DfmsdError, match=said):
            call()


def test_a_report_takes_the_path_of_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("dfmsd.reporting.report", lambda *arguments: seen.append(arguments))
    dfmsd.report("run", teacher=Path("a"))
    dfmsd.report("run", teacher=[Path("a"), "b"])
    assert [teachers for _, _, teachers, _ in seen] == [["a"], ["a", "b"]]


def test_a_device_has_a_type(tiny_teachers: tuple[str, str], tiny_root: Path) -> None:
    assert dfmsd.evaluate(tiny_teachers[0], tiny_root, image_size=64, limit=1, device=torch.device("cpu"))


CALLS: dict[str, Callable[[], object]] = {
    "evaluate": lambda: dfmsd.evaluate("~/there", data="digits"),
    "predict": lambda: dfmsd.predict("teacher", ["~/there"], "drawings"),
    "predict from a tuple": lambda: dfmsd.predict("teacher", ("~/there",), "drawings"),
    "export": lambda: dfmsd.export("~/there"),
    "measure_students": lambda: dfmsd.measure_students(["fcos"], json="~/there/costs.json"),
    "visualize": lambda: dfmsd.visualize("~/there", "teacher", ["there"], "pictures"),
    "report": lambda: dfmsd.report(Path("~/there")),
    "share": lambda: dfmsd.share("~/there", "shared"),
    "inspect_data": lambda: dfmsd.inspect_data("~/there"),
    "convert": lambda: dfmsd.convert("~/there", "converted", to="yolo"),
    "init": lambda: dfmsd.init("~/there", "my.yaml"),
    "check": lambda: dfmsd.check("~/there/my.yaml"),
    "rank_teachers": lambda: dfmsd.rank_teachers("~/there/my.yaml"),
    "estimate": lambda: dfmsd.estimate("~/there/my.yaml"),
    "compare": lambda: dfmsd.compare("~/there/my.yaml"),
    "tune": lambda: dfmsd.tune("~/there/my.yaml"),
    "distill": lambda: dfmsd.distill("~/there/my.yaml"),
    "train": lambda: dfmsd.train("~/there/my.yaml"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    with pytest.raises(DfmsdError, match=re.escape(f"{tmp_path}/there")):
        CALLS[name]()
    assert not (tmp_path / "~").exists()
