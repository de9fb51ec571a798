"""Files of every format, run by their own runtimes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers.exports import OWN, eagerly, need, randomize, tiny
from tests.helpers.tiny_transformers import NEEDED, needs_transformers, save_model, student
from torch import nn

from dfmsd.data.images import read_image
from dfmsd.data.inputs import to_batch
from dfmsd.detectors import build_detector, load_detector, save_detector
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import DfmsdError
from dfmsd.exporting import to_ncnn
from dfmsd.exporting.choice import FORMATS, OUTSIDE
from dfmsd.exporting.exporter import export
from dfmsd.exporting.formats import Format
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.exporting.standalone.infer import suppress
from dfmsd.exporting.to_coreml import COREML
from dfmsd.exporting.to_litert import LITERT
from dfmsd.exporting.to_ncnn import NCNN
from dfmsd.exporting.to_onnx_dense import ONNX_DENSE
from dfmsd.exporting.verify import compare_detections
from dfmsd.types import Detections


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "torch", eagerly(0.0))


@pytest.fixture
def trained(train_config: Callable[..., TrainConfig], tmp_path: Path) -> Path:
    """A run folder with an untrained student that has varied detections."""
    config = train_config(tmp_path / "run")
    save_detector(randomize(build_detector(config.model, ("square", "disc"))), tmp_path / "run")
    write_config(config, tmp_path / "run")
    return tmp_path / "run"


def saved(arch: str, folder: Path) -> str:
    if not arch.startswith("hf:"):
        save_detector(tiny(arch), folder / "model")
        return str(folder / "model")
    save_model(arch[3:], folder / "hub")
    # the library's random weights give all queries the same score, and ties are broken arbitrarily
    save_detector(randomize(student(folder / "hub")), folder / "model")
    return str(folder / "model")


def check(name: str, model: str, folder: Path, root: Path) -> Any:
    need(name)
    out = folder / "files" / f"student{FORMATS[name].suffix}"
    found = export(model, name, out=out, images=root, image_size=96)
    assert found.images == 4
    assert found.difference.detections >= 4
    assert max(found.difference.boxes, found.difference.scores) < 1e-3
    assert set(found.latency) == {"PyTorch", name}
    assert out.stat().st_size > 10_000
    described = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert described["input"]["images"][1:] == [3, 96, 96]
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    return described


@pytest.mark.slow
def test_torch_format(tmp_path: Path, tiny_root: Path) -> None:
    described = check("torch", saved("gfl", tmp_path), tmp_path, tiny_root)
    assert described["input"]["images"][0] == "N"


@pytest.mark.usefixtures("_eager")
def test_defaults_come_from_the_run(trained: Path) -> None:
    found = export(trained, "torch")
    assert found.file == trained / "student.pt2"
    assert found.images == 4
    described = json.loads((trained / "student.pt2.json").read_text())
    assert described["class_names"] == ["square", "disc"]
    assert described["input"] == {"images": ["N", 3, 64, 64]}
    assert described["checked"]["detections"] == found.difference.detections


@pytest.mark.usefixtures("_eager")
def test_files_with_and_without_suppression_have_different_names(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OUTSIDE["onnx"].infix == ".dense"
    monkeypatch.setitem(OUTSIDE, "torch", FORMATS["torch"]._replace(infix=".dense"))
    assert export(trained, "torch", nms="outside").file == trained / "student.dense.pt2"


@pytest.mark.usefixtures("_eager")
def test_a_quantized_file_of_an_earlier_export_is_named(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(trained, "torch", out=trained / "model.pt2")
    assert not caplog.messages
    (trained / "model.int8.pt2").touch()
    export(trained, "torch", out=trained / "model.pt2")
    assert caplog.messages == [
        f"{trained / 'model.int8.pt2'} is of an earlier export; remove it, or export with int8, too"
    ]


@pytest.mark.parametrize("shift", [0.002, float("nan")])
def test_differing_file_is_rejected_and_the_former_one_kept(
    trained: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    monkeypatch.setitem(FORMATS, "torch", eagerly(shift))
    (trained / "student.pt2").write_text("former")
    before = sorted(trained.iterdir())
    with pytest.raises(
        DfmsdError, match=r"differs from the model by .* in boxes and 0\.\d+ in scores, more than 0.001"
    ):
        export(trained, "torch")
    assert sorted(trained.iterdir()) == before
    assert (trained / "student.pt2").read_text() == "former"


@pytest.mark.usefixtures("_eager")
def test_model_without_detections_is_rejected(trained: Path) -> None:
    detector = load_detector(trained)
    nn.init.constant_(detector.model.head.classification_head.cls_logits.bias, -30.0)
    save_detector(detector, trained)
    with pytest.raises(DfmsdError, match="detects nothing in these images"):
        export(trained, "torch")


def test_small_differences_are_accepted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "torch", eagerly(0.0005))
    found = export(trained, "torch")
    assert found.difference.scores == pytest.approx(0.0005, rel=1e-3)
    assert "5.0e-04 in scores" in str(found)


@pytest.mark.slow
def test_onnx_accepts_batches_of_any_size(trained: Path, tiny_root: Path) -> None:
    need("onnx")
    import onnxruntime

    found = export(trained, "onnx")
    assert found.difference.scores < 1e-3
    assert str(Path(torch.__file__).parent).encode() not in found.file.read_bytes()  # no stack traces
    session = onnxruntime.InferenceSession(found.file)
    images = [to_batch(read_image(file), 64).images for file in sorted((tiny_root / "val").iterdir())]
    alone = [session.run(None, {"images": image.numpy()}) for image in images]
    together = session.run(None, {"images": torch.cat(images).numpy()})
    assert [value.shape for value in together] == [(4, 100, 4), (4, 100), (4, 100)]
    for index, (_, scores, _) in enumerate(alone):
        assert abs(scores[0] - together[1][index]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize(
    "arch",
    [
        *OWN,
        *(
            pytest.param(f"hf:{kind}", marks=NEEDED)
            for kind in ("rt_detr", "d_fine", "deimv2", "rf_detr", "deformable_detr")
        ),
    ],
)
def test_every_student_in_every_format(name: str, arch: str, tmp_path: Path, tiny_root: Path) -> None:
    described = check(name, saved(arch, tmp_path), tmp_path, tiny_root)
    assert described["input"]["images"][0] == (1 if arch.startswith("hf:") else "N")
    assert described["suppression"]["inside"]
    assert (described["suppression"]["iou"] is None) == arch.startswith("hf:")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcos", "retinanet", "gfl", "ssdlite"])
def test_executorch_leaves_suppression_to_the_caller(arch: str, tmp_path: Path, tiny_root: Path) -> None:
    described = check("executorch", saved(arch, tmp_path), tmp_path, tiny_root)
    assert described["input"]["images"][0] == 1
    assert not described["suppression"]["inside"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcos", "retinanet", "gfl", "ssdlite"])
def test_ncnn_detects_the_same_outside(arch: str, tmp_path: Path, tiny_root: Path) -> None:
    described = check("ncnn", saved(arch, tmp_path), tmp_path, tiny_root)
    assert described["input"]["images"][0] == 1
    assert described["outputs"] == ["boxes", "scores"]
    assert (tmp_path / "files" / "student.ncnn.bin").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcos", "retinanet", "gfl", "ssdlite"])
def test_litert_detects_the_same_outside(arch: str, tmp_path: Path, tiny_root: Path) -> None:
    described = check("litert", saved(arch, tmp_path), tmp_path, tiny_root)
    assert described["input"]["images"][0] == 1
    assert described["outputs"] == ["boxes", "scores"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", ["fcos", "retinanet", "gfl", "ssdlite", *(pytest.param(f"hf:{kind}", marks=NEEDED) for kind in ("d_fine",))]
)
def test_onnx_without_suppression_and_the_rest_in_numpy(arch: str, tmp_path: Path, tiny_root: Path) -> None:
    need("onnx")
    import onnxruntime

    model = saved(arch, tmp_path)
    found = export(model, "onnx", out=tmp_path / "x.onnx", images=tiny_root, image_size=96, nms="outside")
    info = json.loads((tmp_path / "x.onnx.json").read_text())
    assert not info["suppression"]["inside"]
    session = onnxruntime.InferenceSession(found.file)
    image = to_batch(read_image(sorted((tiny_root / "val").iterdir())[0]), 96).images
    boxes, scores = session.run(None, {"images": image.contiguous().numpy()})
    (expected,) = load_detector(model).eval().detect(image, [(96, 96)])
    ours = [torch.tensor(values) for values in suppress(boxes[0], scores[0], info["suppression"])]
    actual = Detections(boxes=ours[0], scores=ours[1], labels=ours[2])
    assert max(compare_detections(expected, actual, 96, info["suppression"]["above"], 100)[:2]) < 1e-3


@pytest.mark.parametrize("form", [COREML, LITERT, NCNN, ONNX_DENSE])
def test_files_without_suppression_reject_two_stage_detectors(form: Format, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"suppression between its stages, .* `format` onnx, openvino or torch with"):
        form.write(DetectionGraph(tiny("faster_rcnn"), 64), tmp_path / "x")


def test_layers_that_ncnn_lacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pnnx = SimpleNamespace(EXEC_PATH="true")
    monkeypatch.setitem(sys.modules, "pnnx", pnnx)
    script = tmp_path / "model.pt"
    with pytest.raises(DfmsdError, match=r"pnnx cannot convert this model \(status 0\)"):
        to_ncnn._convert(script, 64)
    (tmp_path / "model.ncnn.param").write_text("7767517\n2 2\nInput in0 0 1 in0\ntorch.topk topk_1 1 1 in0 out0\n")
    with pytest.raises(DfmsdError, match=r"ncnn has no layer for torch\.topk of this model; use `format` onnx"):
        to_ncnn._convert(script, 64)


def test_what_litert_cannot_convert_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no lowering\nfor aten.nonzero.")

    monkeypatch.setitem(sys.modules, "litert_torch", SimpleNamespace(config=SimpleNamespace(), convert=convert))
    with pytest.raises(
        DfmsdError, match=r"cannot convert this model \(no lowering for aten.nonzero\); use `format` onnx"
    ):
        LITERT.write(DetectionGraph(tiny("fcos"), 64), tmp_path / "x.tflite")


@needs_transformers
@pytest.mark.transformers
@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (NCNN, "ncnn has no layer that selects queries"),
        (LITERT, "LiteRT lacks operations"),
        (COREML, "coremltools cannot convert RT-DETR"),
    ],
)
def test_queries_are_rejected(form: Format, reason: str, tmp_path: Path) -> None:
    save_model("d_fine", tmp_path)
    with pytest.raises(DfmsdError, match=reason):
        form.write(DetectionGraph(student(tmp_path).eval(), 96), tmp_path / f"x{form.suffix}")


def test_executorch_rejects_two_stage_detectors(tmp_path: Path) -> None:
    graph = DetectionGraph(tiny("faster_rcnn"), 64)
    with pytest.raises(DfmsdError, match="ExecuTorch has no non-maximum suppression, which Faster R-CNN needs"):
        FORMATS["executorch"].write(graph, tmp_path / "x.pte")


@pytest.mark.slow
def test_int8_is_evaluated_on_the_val_split(trained: Path, tiny_root: Path) -> None:
    need("onnx")
    found = export(trained, "onnx", int8=True)
    assert found.quantized is not None
    assert found.quantized.file == trained / "student.int8.onnx"
    assert found.quantized.file.stat().st_size < 0.75 * found.file.stat().st_size
    assert set(found.latency) == {"PyTorch", "onnx", "int8"}
    assert found.quantized.before is not None
    assert found.quantized.before["per_class"].keys() == {"square", "disc"}
    assert "in int8" in str(found)
    described = json.loads((trained / "student.onnx.json").read_text())["int8"]
    assert described["file"] == "student.int8.onnx"
    assert described["before"]["AP"] - described["after"]["AP"] <= 0.01


@pytest.mark.slow
def test_int8_keeps_the_ap_of_a_trained_model(shared_data: Path, tmp_path: Path) -> None:
    run = Path(__file__).resolve().parents[2] / "runs" / "demo" / "distilled"
    if not run.is_dir():
        pytest.skip("no run of the demo")
    need("onnx")
    found = export(run, "onnx", out=tmp_path / "x.onnx", int8=True)
    assert found.quantized is not None
    before, after = found.quantized.before["AP"], found.quantized.after["AP"]
    assert before == pytest.approx(json.loads((run / "metrics.json").read_text())["AP"], abs=1e-3)
    assert after > before - 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"int8": True}, "`int8` requires `format` onnx, got torch"),
        ({"format": "litert", "int8": True}, "`int8` requires `format` onnx, got litert"),
        ({"format": "litert", "nms": "inside"}, "litert has no non-maximum suppression; the formats with it are onnx"),
        ({"nms": "outside"}, "`nms` outside: not for `format` torch; the formats with it are onnx, ncnn, litert"),
        ({"nms": "both"}, "`nms`: expected inside or outside, got 'both'"),
        ({"format": "executorch", "nms": "inside"}, "executorch has no non-maximum suppression; the formats with it"),
        ({"out": Path("x.onnx")}, "`out`: expected a file ending in .pt2, got x.onnx"),
        ({"images": "nowhere"}, "nowhere: no such file or folder"),
        ({"image_size": 50}, "`image_size` must be a multiple of 32, .* got 50"),
        ({"model": "FCOS_ResNet50_FPN_Weights.COCO_V1"}, "`out`: required because FCOS_.* is not a file or folder"),
    ],
)
def test_invalid_arguments_are_rejected_before_work(trained: Path, changes: dict[str, Any], message: str) -> None:
    if "model" in changes:
        changes = {**changes, "model": changes["model"].replace("RUN", str(trained))}
    before = sorted(trained.iterdir())
    with pytest.raises(DfmsdError, match=message):
        export(**{"model": trained, "format": "torch", **changes})
    assert sorted(trained.iterdir()) == before


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(DfmsdError, match=r"`format` openvino needs openvino: pip install 'dfmsd\[openvino\]'"):
        export(trained, "openvino")


@pytest.mark.usefixtures("_eager")
def test_plain_image_folder(trained: Path, tiny_root: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_root / "val", tmp_path / "pictures")
    (tmp_path / "pictures" / "val_0.jpg").unlink()
    found = export(trained / "student.safetensors", "torch", images=tmp_path / "pictures", image_size=64)
    assert (found.file, found.images) == (trained / "student.pt2", 3)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"format: unknown format 'tflite'; did you mean litert\?"):
        export(tmp_path, "tflite")
