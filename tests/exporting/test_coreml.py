"""Core ML packages: folders, which only macOS can run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers.exports import need, randomize, tiny
from tests.helpers.fixtures import TINY_BACKBONE

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting.choice import FORMATS
from dfmsd.exporting.dense import DenseGraph
from dfmsd.exporting.exporter import export
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.exporting.to_coreml import COREML, inspect

DENSE = ("fcos", "retinanet", "gfl", "ssdlite")


def package(text: str) -> Callable[[DetectionGraph, Path], None]:
    """Return a function that writes a package with a text."""

    def write(_: DetectionGraph, file: Path) -> None:
        (file / "Data").mkdir(parents=True)
        (file / "Data" / "text").write_text(text)
        (file / "Manifest.json").write_text("{}")

    return write


def use(monkeypatch: pytest.MonkeyPatch, text: str, inspected: Any, **changes: Any) -> None:
    form = COREML._replace(packages=(), write=package(text), inspect=inspected, **changes)
    monkeypatch.setitem(FORMATS, "coreml", form)


def test_a_file_that_cannot_run_says_so_and_takes_no_images(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "new", lambda file, _: f"it holds {(file / 'Data' / 'text').read_text()}")
    found = export(model, "coreml", image_size=96)
    assert str(found) == f"{found.file}\nnot run on this machine: it holds new"
    described = json.loads((model / "student.mlpackage.json").read_text())
    assert described["checked"] == {"run": False, "inspected": "it holds new"}
    assert described["outputs"] == ["boxes", "scores"]
    assert (found.difference, found.latency) == (None, {})


def test_an_older_package_is_replaced_once_the_new_one_is_good(
    model: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> str:
        raise DfmsdError("differs")

    def text() -> str:
        return (model / "student.mlpackage" / "Data" / "text").read_text()

    use(monkeypatch, "old", lambda *_: "good")
    export(model, "coreml", images=tiny_root, image_size=96)
    before = sorted(model.iterdir())
    use(monkeypatch, "bad", refuse)
    with pytest.raises(DfmsdError, match="differs"):
        export(model, "coreml", images=tiny_root, image_size=96)
    assert text() == "old"
    use(monkeypatch, "new", lambda *_: "good")
    export(model, "coreml", images=tiny_root, image_size=96)
    assert text() == "new"
    assert sorted(model.iterdir()) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_package_is_not_overwritten(
    kind: str, model: Path, tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "new", lambda *_: "good")
    out = tmp_path / "own.mlpackage"
    if kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(DfmsdError, match=r"own\.mlpackage exists and is no \.mlpackage folder"):
        export(model, "coreml", out=out, images=tiny_root, image_size=96)
    assert ((out / "notes.txt") if kind == "folder" else out).read_text() == "mine"


@pytest.mark.parametrize(("shift", "refused"), [(0.0, False), (0.01, True)])
def test_where_it_can_run_it_is_run(
    shift: float, refused: bool, model: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the library's interface as documented; the real one runs on macOS only."""
    graph = DetectionGraph(tiny("fcos"), 96).eval()

    class MLModel:
        def __init__(self, file: str, *, compute_units: str) -> None:
            assert Path(file, "Manifest.json").is_file()
            assert compute_units == "cpu"

        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            with torch.no_grad():
                boxes, scores = DenseGraph(graph)(torch.from_numpy(inputs["images"]))
            return {"boxes": boxes.numpy(), "scores": scores.numpy() + shift}

    library = SimpleNamespace(models=SimpleNamespace(MLModel=MLModel), ComputeUnit=SimpleNamespace(CPU_ONLY="cpu"))
    monkeypatch.setitem(sys.modules, "coremltools", library)
    use(monkeypatch, "new", None)
    if refused:
        with pytest.raises(DfmsdError, match="the file differs from the model"):
            export(model, "coreml", images=tiny_root, image_size=96)
        assert not (model / "student.mlpackage").exists()
        return
    found = export(model, "coreml", images=tiny_root, image_size=96)
    assert found.images == 4
    assert found.difference is not None
    assert found.difference.detections >= 4
    assert set(found.latency) == {"PyTorch", "coreml"}
    assert json.loads((model / "student.mlpackage.json").read_text())["checked"]["run"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"int8": True}, "`int8` requires `format` onnx, got coreml"),
        ({"nms": "inside"}, "coreml has no non-maximum suppression; the formats with it are onnx, openvino"),
        ({"images": "nowhere"}, "nowhere: no such file or folder"),
        ({"out": "x.mlmodel"}, r"`out`: expected a file ending in \.mlpackage, got x\.mlmodel"),
    ],
)
def test_what_it_cannot_do_is_refused(
    changes: dict[str, Any], message: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "new", lambda *_: "good")
    with pytest.raises(DfmsdError, match=message):
        export(model, "coreml", **changes)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS runs the packages")
@pytest.mark.parametrize("model", DENSE, indirect=True)
def test_packages_have_the_layers_of_the_model(model: Path, tiny_root: Path) -> None:
    need("coreml")
    found = export(model, "coreml", images=tiny_root, image_size=96)
    assert re.search(r"the weights of \d+ convolutions and matrix products are the model's", found.inspected)
    assert sorted(path.name for path in found.file.iterdir()) == ["Data", "Manifest.json"]


@pytest.mark.slow
def test_packages_of_other_models_are_told(tmp_path: Path) -> None:
    need("coreml")
    detector, file = tiny("fcos"), tmp_path / "x.mlpackage"
    COREML.write(DetectionGraph(detector, 96).eval(), file)
    assert inspect(file, DetectionGraph(tiny("fcos"), 96).eval())
    with pytest.raises(DfmsdError, match=r"the file has .*'images': \(1, 3, 96, 96\).* the model .*\(1, 3, 64, 64\)"):
        inspect(file, DetectionGraph(detector, 64).eval())
    deeper = randomize(
        build_detector(DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=16, head_convs=2), ("a", "b", "c"))
    )
    with pytest.raises(DfmsdError, match=r"\d+ convolutions and matrix products, the model \d+"):
        inspect(file, DetectionGraph(deeper, 96).eval())
    detector.model.head.classification_head.cls_logits.weight.data[0, 0, 0, 0] += 0.1
    with pytest.raises(DfmsdError, match=r"convolution or matrix product \d+ of \d+ of the file differs"):
        inspect(file, DetectionGraph(detector, 96).eval())
