"""The script of a bundle, against the product and on a network whose boxes are known."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.exports import tiny

from dfmsd.data.images import read_image, rgb_tensor
from dfmsd.data.inputs import to_batch
from dfmsd.exporting.dense import DenseGraph
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.exporting.results import Exported, describe
from dfmsd.exporting.standalone import infer
from dfmsd.exporting.to_onnx_dense import ONNX_DENSE
from dfmsd.exporting.verify import Difference
from dfmsd.utils.boxes import drop_empty

PREPROCESS = {"size": 64, "padding": [0, 0, 0], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
BOXES = [[8, 8, 24, 24], [9, 8, 24, 24], [8, 8, 24, 24], [20, 20, 50, 70], [0, 40, 20, 60]]
SCORES = [[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.6, 0.0], [0.5, 0.5]]
"""Of a white image. Row 1 overlaps a better box of its class, the last one lies below an image of half the height."""
BLOCKED = """
import runpy, sys
sys.modules |= dict.fromkeys(("torch", "torchvision", "dfmsd"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script as if these packages were not installed."""


def network(outputs: dict[str, np.ndarray]) -> Any:
    """Return an ONNX network that scales its scores with the brightest pixel."""
    onnx = pytest.importorskip("onnx")
    helper, of_array = onnx.helper, onnx.numpy_helper.from_array
    nodes = [helper.make_node("ReduceMax", ["images"], ["brightest"], keepdims=0)]
    infos = []
    for name, values in outputs.items():
        last = ["Mul", [f"{name}_", "brightest"]] if name == "scores" else ["Identity", [f"{name}_"]]
        nodes.append(helper.make_node(*last, [name]))
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape))
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    known = [of_array(values, f"{name}_") for name, values in outputs.items()]
    graph = helper.make_graph(nodes, "network", [images], infos, known)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(params=["inside", "outside"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle of the network, with a white image of 128 x 64 pixels in which it finds three objects."""
    pytest.importorskip("onnxruntime")
    boxes, scores = np.array([BOXES], np.float32), np.array([SCORES], np.float32)
    rule = {"inside": False, "iou": 0.5, "above": 0.05, "per_image": 100, "class_of": [0, 1]}
    outputs = {"boxes": boxes, "scores": scores}
    if request.param == "inside":
        rule["inside"] = True
        outputs = {"boxes": boxes[:, [0, 2, 3, 4, 0]], "scores": np.float32([[0.9, 0.7, 0.6, 0.5, 0]])}
        outputs["labels"] = np.array([[0, 1, 0, 0, -1]])
    settings = {
        "model": "model.onnx",
        "runtime": "onnxruntime",
        "format": "onnx",
        "input": {"images": [1, 3, 64, 64]},
        "preprocess": PREPROCESS,
        "outputs": list(outputs),
        "suppression": {**rule, "groups": [4, 1], "candidates": 100, "by_class": False},
    }
    (tmp_path / "preprocess.json").write_text(json.dumps(settings))
    (tmp_path / "labels.txt").write_text("cat\nsea urchin\n")
    (tmp_path / "model.onnx").write_bytes(network(outputs).SerializeToString())
    shutil.copy(str(infer.__file__), tmp_path / "infer.py")
    Image.new("RGB", (128, 64), "white").save(tmp_path / "test.png")
    expected = {"image": "test.png", "score": 0.3, "tolerance": {"pixels": 2.0, "score": 0.02}, "objects": OBJECTS}
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    return tmp_path


OBJECTS = [
    {"label": "cat", "class": 0, "score": 0.9, "box": [16.0, 16.0, 48.0, 48.0]},
    {"label": "sea urchin", "class": 1, "score": 0.7, "box": [16.0, 16.0, 48.0, 48.0]},
    {"label": "cat", "class": 0, "score": 0.6, "box": [40.0, 40.0, 100.0, 64.0]},
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, str(folder / "infer.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_the_script_runs_without_torch_and_dfmsd(folder: Path) -> None:
    done = run(folder, "test.png", "--out", "drawn", "--json", "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:3] == [
        "test.png: 3 objects",
        "  0.900  cat                  16.0     16.0     48.0     48.0",
        "  0.700  sea urchin           16.0     16.0     48.0     48.0",
    ]
    assert json.loads((folder / "found.json").read_text()) == [{"image": "test.png", "objects": OBJECTS}]
    drawn = np.asarray(Image.open(folder / "drawn" / "test.png"))
    assert drawn.shape == (64, 128, 3)
    assert (drawn[52, 100] != 255).any()  # the right side of the last box
    assert (drawn[52, 110] == 255).all()


def test_the_check_tells_what_differs(folder: Path) -> None:
    done = run(folder, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 agree; largest differences 0.000 pixels and 0.0000 in scores\n"
    expected = json.loads((folder / "expected.json").read_text())
    expected["objects"][0]["box"][0] -= 1.5
    expected["objects"][1]["box"][0] -= 3
    expected["objects"][2]["score"] += 0.03
    (folder / "expected.json").write_text(json.dumps(expected))
    done = run(folder, "--check")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "expected: 0.700  sea urchin           13.0     16.0     48.0     48.0",
        "expected: 0.630  cat                  40.0     40.0    100.0     64.0",
        "not expected: 0.700  sea urchin           16.0     16.0     48.0     48.0",
        "not expected: 0.600  cat                  40.0     40.0    100.0     64.0",
        "1 agree; largest differences 1.500 pixels and 0.0000 in scores",
    ]


@pytest.mark.parametrize("folder", ["outside"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name images, or folders of them"),
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["empty"], "empty: no image in this folder; they end in .bmp, .gif"),
        (["labels.txt"], "labels.txt: cannot be decoded as an image"),
        (["test.png", "--score", "3"], "--score: expected a number from 0 to 1, got 3"),
        (["--check", "--model", "no.onnx"], "no.onnx: no such file; name a model file of this folder"),
        (["--check", "--model", "labels.txt"], "labels.txt: cannot be loaded"),
        (["test.png", "--out", "."], "--out: test.png would be drawn over test.png; name another folder"),
        (
            ["test.png", "test.jpg", "--out", "drawn"],
            "--out: test.png and test.jpg would both be drawn to drawn/test.png",
        ),
        (["--check", "test.png"], "--check takes no images, --out or --json"),
        (["--check", "--json", "found.json"], "--check takes no images, --out or --json"),
        (["test.png", "--out", "labels.txt"], "labels.txt"),
        (["test.png", "--json", "nowhere/found.json"], "No such file or directory: 'nowhere/found.json'"),
        (["float.tiff"], "float.tiff: cannot be decoded as an image (pixels of more than 16 bits"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "._test.png").write_bytes(b"left by another system")
    Image.new("F", (8, 8)).save(folder / "float.tiff")
    Image.new("RGB", (8, 8)).save(folder / "test.jpg")
    monkeypatch.chdir(folder)
    assert status(folder, arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("infer.py: error: ")
    assert message in error
    assert error.count("\n") == 1


def status(folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["infer.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(folder / "infer.py"), run_name="__main__")
    return caught.value.code


@pytest.mark.parametrize("folder", ["outside"], indirect=True)
def test_what_is_missing_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert status(folder, ["--check"], monkeypatch) == 2
    assert capsys.readouterr().err.endswith("; run: pip install onnxruntime\n")
    expected = (folder / "expected.json").read_text()
    for damaged in (expected[:40], "{}", "[]"):
        (folder / "expected.json").write_text(damaged)
        monkeypatch.undo()
        assert status(folder, ["--check"], monkeypatch) == 2
        assert "no readable expected.json" in capsys.readouterr().err
    preprocess = (folder / "preprocess.json").read_text()
    for damaged in (preprocess[:40], "{}"):
        (folder / "preprocess.json").write_text(damaged)
        assert status(folder, ["--check"], monkeypatch) == 2
        assert "no readable preprocess.json and labels.txt" in capsys.readouterr().err
    (folder / "preprocess.json").write_text(preprocess)
    (folder / "labels.txt").write_text("cat\n")
    assert status(folder, ["--check"], monkeypatch) == 2
    assert capsys.readouterr().err.endswith("labels.txt: 1 names, but the model has 2 classes\n")
    (folder / "labels.txt").unlink()
    assert status(folder, ["--check"], monkeypatch) == 2
    assert "no readable preprocess.json and labels.txt" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["outside"], indirect=True)
def test_an_image_that_is_named_twice_is_drawn_once(folder: Path) -> None:
    (folder / "sub").mkdir()
    done = run(folder, "test.png", "sub/../test.png", "--out", "drawn")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("test.png: 3 objects") == 1
    assert [path.name for path in (folder / "drawn").iterdir()] == ["test.png"]


@pytest.mark.parametrize("folder", ["outside"], indirect=True)
def test_the_same_call_can_be_repeated(folder: Path) -> None:
    (folder / "begun.json").touch()  # by a call that was killed
    for name in ("begun.json", "found.json", "found.json"):
        done = run(folder, "test.png", "--out", "drawn", "--json", name)
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((folder / "begun.json").read_text()) == json.loads((folder / "found.json").read_text())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("folder", ["outside"], indirect=True)
def test_boxes_can_be_written_to_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        command = [sys.executable, str(folder / "infer.py"), "test.png", "--json", "pipe"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert [one["image"] for one in json.loads(os.read(reader, 65536))] == ["test.png"]
    finally:
        os.close(reader)


@pytest.mark.parametrize("folder", ["outside"], indirect=True)
@pytest.mark.parametrize(
    ("option", "place", "file"),
    [
        ("--json", "preprocess.json", "preprocess.json"),
        ("--json", "labels.txt", "labels.txt"),
        ("--json", "mine.json", "mine.json"),
        ("--json", "none.json", "none.json"),
        ("--json", "deep.json", "deep.json"),
        ("--json", "photo.png", "photo.png"),
        ("--out", "mine", "mine/test.png"),
    ],
)
def test_no_file_of_others_is_replaced(
    folder: Path,
    option: str,
    place: str,
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "mine").mkdir()
    (folder / "mine.json").write_text("[1, 2]")
    (folder / "none.json").write_text("{}")
    (folder / "deep.json").write_text("[" * 200_000)
    for name in ("photo.png", "mine/test.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    before = (folder / file).read_bytes()
    monkeypatch.chdir(folder)
    assert status(folder, ["test.png", option, place], monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"infer.py: error: {option}: {file} exists, and infer.py has not")
    assert (folder / file).read_bytes() == before


@pytest.mark.parametrize("folder", ["outside"], indirect=True)
def test_labels_that_a_console_cannot_show_are_escaped(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\n红细胞\n", encoding="utf-8")
    command = [sys.executable, str(folder / "infer.py"), str(folder / "test.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONIOENCODING": "cp1252"})
    assert "\\u7ea2" in done.stdout


@pytest.mark.parametrize("folder", ["outside"], indirect=True)
def test_one_broken_image_does_not_stop_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes((folder / "test.png").read_bytes()[:50])
    Image.new("L", (64, 64)).save(folder / "pictures" / "b.png")
    shutil.copy(folder / "test.png", folder / "pictures" / "c.png")
    found = folder / "found.json"
    assert status(folder, [str(folder / "pictures"), "--json", str(found)], monkeypatch) == 2
    assert "a.png: cannot be decoded" in capsys.readouterr().err
    assert [(Path(one["image"]).name, len(one["objects"])) for one in json.loads(found.read_text())] == [
        ("b.png", 0),
        ("c.png", 3),
    ]


@pytest.mark.parametrize("size", [(64, 64), (320, 240), (90, 37), (68, 431), (640, 11), (1, 50), (1000, 1000)])
def test_images_are_prepared_as_the_product_does(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (max(1, size[1] // 4), max(1, size[0] // 4), 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    batch = to_batch(rgb_tensor(image, "image"), 64)
    pixels, (width, height) = infer.preprocess(image, {"preprocess": PREPROCESS})
    assert [(height, width)] == batch.sizes
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, 3, 64, 64))
    difference = np.abs(pixels - batch.images.numpy()) * 255
    assert difference.max() < 2.01  # they round resized pixels differently
    # without these instructions PyTorch resizes in floating point
    fixed_point = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert difference[:, :, :height, :width].mean() < (0.05 if fixed_point else 0.25)
    if max(size) == 64:
        assert difference.max() == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_are_read_as_the_product_does(mode: str, orientation: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    file = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        image = Image.fromarray(values[:, :, 0].astype(np.uint16) * 9)  # 12 bits
    else:
        image = Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, exif=exif)
    assert torch.equal(torch.tensor(np.array(infer.open_image(file))), read_image(file).permute(1, 2, 0))


@pytest.mark.parametrize("arch", ["fcos", "retinanet", "gfl", "ssdlite"])
def test_it_finds_what_the_model_finds(arch: str) -> None:
    detector = tiny(arch)
    detector.model.topk_candidates = 40  # so that the selection counts
    graph = DetectionGraph(detector, 96).eval()
    info = describe("onnx", ONNX_DENSE, graph, Exported(Path("x"), 1, 96, Difference(0.0, 0.0), {}, detector))
    image = torch.rand(1, 3, 96, 96)
    image[:, :, 70:] = 0
    with torch.no_grad():
        outputs = [values.numpy() for values in DenseGraph(graph)(image)]
        expected = drop_empty(detector.detect(image, [(70, 96)])[0])
    found = infer.finish(outputs, (96, 70), info["suppression"])
    assert len(found.boxes) >= 2
    assert found.classes.tolist() == expected["labels"].tolist()
    assert np.allclose(found.scores, expected["scores"], atol=1e-5)
    assert np.allclose(found.boxes, expected["boxes"], atol=1e-3)
