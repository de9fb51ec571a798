"""Sizes and times of students that are not trained yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import pytest
from rich.console import Console
from tests.helpers.exports import eagerly

import dfmsd
from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting import students
from dfmsd.exporting.choice import FORMATS
from dfmsd.exporting.students import CANDIDATES, measure_students, print_students, student_config

FCOS, SSDLITE = "fcos/mobilenetv3_small_050", "ssdlite/mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call run once; the last one is the fastest."""

    def run_once(calls: Mapping[Hashable, Callable[[], object]], seconds: float) -> dict[Hashable, float]:
        assert seconds == len(calls)
        for call in calls.values():
            call()
        return {key: float(len(calls) - number) for number, key in enumerate(calls)}

    monkeypatch.setattr(students, "time_in_turns", run_once)


def test_sizes_are_those_of_the_detectors() -> None:
    (cost,) = measure_students([FCOS], image_size=64, classes=3)
    built = build_detector(DetectorConfig("fcos", "mobilenetv3_small_050", head_convs=2), ["a", "b", "c"])
    assert cost.parameters == sum(parameter.numel() for parameter in built.parameters())
    (larger,) = measure_students([FCOS], image_size=128, classes=3)
    assert larger.flops / cost.flops == pytest.approx(4, rel=0.05)  # the coarsest maps do not shrink
    assert larger.parameters == cost.parameters
    assert cost.file_bytes is None


def test_fastest_student_is_first() -> None:
    costs = measure_students([FCOS, SSDLITE], image_size=64, classes=3)
    assert [cost.student for cost in costs] == [SSDLITE, FCOS]
    assert [cost.latency for cost in costs] == [{"pytorch": 1.0}, {"pytorch": 2.0}]


def test_students_run_in_another_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", eagerly(0.0))
    costs = measure_students([FCOS, SSDLITE], image_size=64, runtime="onnx", classes=3)
    assert [cost.latency for cost in costs] == [{"pytorch": 3.0, "onnx": 1.0}, {"pytorch": 4.0, "onnx": 2.0}]
    assert all(cost.file_bytes is not None for cost in costs)
    console = Console(width=120)
    with console.capture() as captured:
        print_students(costs, 64, console)
    assert "64 x 64 pixels" in captured.get()
    assert "1.33" in captured.get()  # 4.0 / 3.0
    assert "2.00" in captured.get()


@pytest.mark.slow
def test_students_run_in_onnx() -> None:
    pytest.importorskip("onnxruntime", reason="needs pip install 'dfmsd[onnx]'")
    (cost,) = measure_students([SSDLITE], image_size=64, runtime="onnx", classes=3)
    assert cost.file_bytes == pytest.approx(4 * cost.parameters, rel=0.2)


def test_every_candidate_can_be_built() -> None:
    for name in CANDIDATES:
        assert build_detector(student_config(name), ["object"]).levels


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["fcos"], {}, "expected arch/backbone such as"),
        (["yolo/resnet18"], {}, "the architectures are fcos, retinanet, gfl, faster_rcnn, ssdlite"),
        (["fcos/resnet1"], {}, "resnet1"),
        ([FCOS], {"runtime": "tvm"}, "expected onnx, openvino, ncnn, executorch, got 'tvm'"),
        ([FCOS], {"classes": 0}, "must be at least 1, got 0"),
        ([FCOS], {"image_size": 0}, "image_size"),
    ],
)
def test_refusals(names: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        measure_students(names, **options)  # type: ignore[arg-type]


def test_function_writes_json(tmp_path: Path) -> None:
    costs = dfmsd.measure_students([SSDLITE], image_size=64, classes=3, json=tmp_path / "new" / "students.json")
    (written,) = json.loads((tmp_path / "new" / "students.json").read_text())
    assert written["student"] == SSDLITE
    assert written["flops"] == costs[0].flops
